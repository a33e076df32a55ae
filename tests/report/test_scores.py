"""Scores for a paper are those of probe.json, whatever the names of runs."""

import csv
import dataclasses
import io
import json
from typing import Any

from pipeline.report.collect import RunFacts
from pipeline.report.scores import as_csv, as_markdown, headline_keys, score_table


def with_top1(run: RunFacts, name: str, top1: float) -> RunFacts:
    scores: dict[str, Any] = {"student": {"zeroshot": {"top1": top1}}}
    return dataclasses.replace(run, name=name, scores=scores)


def test_the_csv_has_every_score_in_full(facts: list[RunFacts]) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(facts))))
    for run in facts:
        stored = json.loads((run.path / "probe.json").read_text(encoding="utf-8"))
        found: dict[str, dict[str, dict[str, float]]] = {}
        for row in rows:
            if row["run"] == run.name:
                probes = found.setdefault(row["encoder"], {})
                probes.setdefault(row["probe"], {})[row["score"]] = float(row["value"])
        assert found == stored


def test_a_name_is_no_formula_and_breaks_no_table(facts: list[RunFacts]) -> None:
    run = with_top1(facts[0], "=1|2\n<b>", 0.5)
    assert next(csv.DictReader(io.StringIO(as_csv([run]))))["run"] == "'=1|2\n<b>"
    line = next(line for line in as_markdown([run]).splitlines() if "=1" in line)
    assert line.startswith("| =1\\|2 &lt;b>")


def test_the_best_student_is_bold_only_among_several(facts: list[RunFacts]) -> None:
    one, other = with_top1(facts[0], "one", 0.5), with_top1(facts[0], "other", 0.75)
    assert "**75.0**" in as_markdown([one, other])
    assert "**50.0**" not in as_markdown([one, other])
    assert "**" not in as_markdown([one])


def test_rows_are_teacher_students_chance_and_what_is_missing_is_a_dash(
    facts: list[RunFacts],
) -> None:
    table = score_table(facts)
    assert [line.kind for line in table.lines] == ["teacher", "student", "student", "chance"]
    assert table.columns[0] == "zero-shot"
    assert not {"C", "iterations", "objective", "converged"} & set(table.columns)
    chance = dict(zip(table.columns, table.lines[-1].shares, strict=True))
    assert chance["linear, embedding"] is None
    assert as_markdown([dataclasses.replace(facts[0], scores=None)]) == "No run has scores yet.\n"


def test_the_teachers_shares_come_from_whichever_run_was_scored_so(facts: list[RunFacts]) -> None:
    bare = dataclasses.replace(
        facts[0], name="bare", scores={"teacher": {"linear": {"accuracy": 1}}}
    )
    table = score_table([bare, facts[1]])
    assert None not in table.lines[0].shares


def test_headlines_are_of_the_probes_that_were_run(facts: list[RunFacts]) -> None:
    assert headline_keys(facts) == [("zeroshot", "top1"), ("linear", "accuracy")]
    assert headline_keys([with_top1(facts[0], "x", 0.1)]) == [("zeroshot", "top1")]
