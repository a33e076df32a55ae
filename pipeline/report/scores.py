"""Puts the scores of runs in rows: for the page, and as Markdown or CSV for a paper."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.probes import PROBES
from pipeline.report.collect import RunFacts, grouped
from pipeline.report.markdown import escaped
from pipeline.report.svg import percent

# Not shares of images, but how a fit went.
_NOT_SHARES = {"C", "iterations", "objective", "converged"}
_TITLES = {
    ("zeroshot", "top1"): "zero-shot",
    ("zeroshot", "top5"): "zero-shot top-5",
    ("zeroshot", "mean_per_class"): "zero-shot, mean of classes",
    ("linear", "accuracy"): "linear",
    ("linear", "embedding_accuracy"): "linear, embedding",
}


@dataclass(frozen=True)
class Line:
    """One encoder's scores, a share or None for each column. kind: teacher, student, chance."""

    kind: str
    name: str
    model: str
    dataset: str
    shares: tuple[float | None, ...]


@dataclass(frozen=True)
class ScoreTable:
    """The runs of one group: teacher, students, chance."""

    columns: tuple[str, ...]
    lines: tuple[Line, ...]

    def is_best(self, line: Line, column: int) -> bool:
        """Tell whether no other student of several scores more in a column."""
        students = [one.shares[column] for one in self.lines if one.kind == "student"]
        known = [share for share in students if share is not None]
        mine = line.shares[column]
        return line.kind == "student" and len(known) > 1 and mine == max(known)


def score_table(runs: Sequence[RunFacts]) -> ScoreTable:
    """Lay out runs that may be compared: one teacher, every student, chance."""
    scored = [run for run in runs if run.scores is not None]
    keys = _keys(scored)
    lines = [_line("teacher", scored, keys)] if scored else []
    lines += [_line("student", [run], keys) for run in scored]
    lines += [_line("chance", scored, keys)] if scored else []
    return ScoreTable(tuple(title_of(key) for key in keys), tuple(lines))


def as_markdown(runs: Sequence[RunFacts]) -> str:
    """Return the score tables of all groups as Markdown, in per cent, best students in bold."""
    parts = []
    for group in grouped(runs):
        table = score_table(group)
        if not table.lines:
            continue
        head = ["", "encoder", *(f"{title} %" for title in table.columns)]
        rows = [
            [
                escaped(line.name),
                escaped(line.model),
                *(
                    f"**{percent(share)}**" if table.is_best(line, place) else percent(share)
                    for place, share in enumerate(line.shares)
                ),
            ]
            for line in table.lines
        ]
        rule = ["---", "---", *("---:" for _ in table.columns)]
        lines = ["| " + " | ".join(row) + " |" for row in (head, rule, *rows)]
        parts.append("\n".join([f"{escaped(group[0].dataset)}, test images:", "", *lines]))
    return "\n\n".join(parts or ["No run has scores yet."]) + "\n"


def as_csv(runs: Sequence[RunFacts]) -> str:
    """Return every score of every run, a line each: shares in full, nothing rounded."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["run", "dataset", "teacher", "student", "encoder", "probe", "score", "value"])
    for run in runs:
        for encoder, probes in (run.scores or {}).items():
            for probe, scores in probes.items():
                for name, value in scores.items():
                    origin = [run.name, run.dataset, run.teacher, run.model]
                    writer.writerow([*map(_harmless, origin), encoder, probe, name, value])
    return buffer.getvalue()


def headline_keys(runs: Sequence[RunFacts]) -> list[tuple[str, str]]:
    """Return (probe, headline score) of the probes that were run, zero-shot first."""
    run_probes = {
        probe for run in runs for probes in (run.scores or {}).values() for probe in probes
    }
    names = sorted(
        run_probes & set(PROBES), key=lambda name: (name != "zeroshot", name != "linear")
    )
    return [(name, PROBES[name].headline) for name in names]


def title_of(key: tuple[str, str]) -> str:
    """Return the name of a (probe, score) as a reader knows it."""
    return _TITLES.get(key, f"{key[0]} {key[1]}".replace("_", " "))


def _keys(runs: Sequence[RunFacts]) -> list[tuple[str, str]]:
    """Return (probe, score) of all shares: known ones in their order, then the others."""
    found = {
        (probe, name)
        for run in runs
        for probes in (run.scores or {}).values()
        for probe, scores in probes.items()
        for name, value in scores.items()
        if name not in _NOT_SHARES and not name.endswith("median_rank") and 0 <= value <= 1
    }
    return [key for key in _TITLES if key in found] + sorted(found - set(_TITLES))


def _line(kind: str, runs: Sequence[RunFacts], keys: Sequence[tuple[str, str]]) -> Line:
    """Return one encoder's line; each share is of the first run that was scored so."""
    run = runs[0]
    name = {"teacher": "Teacher", "student": run.name, "chance": "Chance"}[kind]
    model = {"teacher": run.teacher, "student": run.model, "chance": "commonest class"}[kind]
    found = [
        [share for one in runs if (share := one.score(kind, *key)) is not None] for key in keys
    ]
    shares = tuple(known[0] if known else None for known in found)
    return Line(kind, name, model, run.dataset, shares)


def _harmless(text: str) -> str:
    """Keep a spreadsheet from taking a name for a formula."""
    return f"'{text}" if text[:1] in "=+-@\t\r" else text
