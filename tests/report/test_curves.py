"""Curves show what the epochs recorded; prompts are counted as the runs were trained."""

import dataclasses
from typing import Any

from pipeline.report.collect import RunFacts
from pipeline.report.curves import anchors_of, learning_curves, prompts_chart


def test_every_number_of_the_epochs_has_a_chart_with_both_runs(facts: list[RunFacts]) -> None:
    curves = learning_curves(facts, {run.name: i for i, run in enumerate(facts)})
    assert curves is not None
    assert curves.legend == ((0, facts[0].name), (1, facts[1].name))
    recorded = {key for run in facts for line in run.epochs for key in line}
    assert len(curves.charts) == len(recorded - {"epoch", "step", "seconds"})
    loss = next(chart for chart in curves.charts if chart.title == "Loss, weighted sum")
    assert [row[0] for row in loss.rows] == ["1", "2", "3"]
    assert loss.columns == ("epoch", facts[0].name, facts[1].name)
    csm = next(chart for chart in curves.charts if chart.title == "Loss term csm_ce")
    assert csm.columns == ("epoch", facts[0].name)


def test_held_out_scores_come_first_and_in_per_cent(facts: list[RunFacts]) -> None:
    lines = tuple({"epoch": i, "loss": 1.0, "held_out_zeroshot": 0.25 * i} for i in range(3))
    run = dataclasses.replace(facts[0], epochs=lines)
    curves = learning_curves([run], {run.name: 0})
    assert curves is not None
    first = curves.charts[0]
    assert first.title == "Held-out zero-shot accuracy, %"
    assert [row[1] for row in first.rows] == ["0", "25", "50"]


def test_a_run_without_epochs_has_no_curves(facts: list[RunFacts]) -> None:
    assert learning_curves([dataclasses.replace(facts[0], epochs=())], {facts[0].name: 0}) is None


def with_anchors(run: RunFacts, name: str, top1: float) -> RunFacts:
    sets = {**run.origin["prompt_sets"], "anchors": name}
    scores: dict[str, Any] = {
        "student": {"zeroshot": {"top1": top1}},
        "teacher": {"zeroshot": {"top1": 0.9}},
    }
    return dataclasses.replace(run, origin={**run.origin, "prompt_sets": sets}, scores=scores)


def test_accuracy_by_number_of_prompts_is_a_line_for_each_model(facts: list[RunFacts]) -> None:
    other = {**facts[0].recipe, "student": {**facts[0].recipe["student"], "model": "rn18"}}
    runs = [
        with_anchors(facts[0], "shapes-plain.2of3-seed0", 0.5),
        with_anchors(facts[0], "shapes-plain.2of3-seed1", 0.7),
        with_anchors(facts[0], "shapes-plain.1of3-seed4", 0.25),
        with_anchors(dataclasses.replace(facts[0], recipe=other), "shapes-plain", 0.75),
    ]
    assert [anchors_of(run) for run in runs] == [2, 2, 1, 3]
    chart = prompts_chart(runs)
    assert chart is not None
    assert chart.columns[1:] == (facts[0].model,)  # the other model knows one number alone
    assert chart.rows == (("1", "25"), ("2", "60"))
    assert "teacher 90" in chart.drawing
    assert prompts_chart(runs[:2]) is None
    assert prompts_chart([runs[0], runs[3]]) is None


def test_prompts_of_a_cache_that_is_gone_are_not_counted(facts: list[RunFacts]) -> None:
    gone = dataclasses.replace(facts[0], origin={**facts[0].origin, "cache_path": "/nowhere"})
    assert anchors_of(gone) is None
