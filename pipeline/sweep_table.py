"""Sums a sweep's scores up over its seeds, and lays them out as text, Markdown or CSV."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from pipeline.probes import PROBES

SPREAD = "mean ± standard deviation (n - 1) over n seeds"
Spread = dict[str, float | int | None]


def summary(runs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Spread]]]:
    """Return {encoder: {probe: {score: mean, sd, min, max and n}}} over the runs with scores.

    sd is the sample standard deviation, None of one run.
    """
    values: dict[tuple[str, str, str], list[float]] = {}
    for run in runs:
        for encoder, probes in run.get("scores", {}).items():
            for probe, scores in probes.items():
                for score, value in scores.items():
                    values.setdefault((encoder, probe, score), []).append(value)
    found: dict[str, dict[str, dict[str, Spread]]] = {}
    for (encoder, probe, score), each in values.items():
        found.setdefault(encoder, {}).setdefault(probe, {})[score] = {
            "mean": fmean(each),
            "sd": stdev(each) if len(each) > 1 else None,
            "min": min(each),
            "max": max(each),
            "n": len(each),
        }
    return found


@dataclass(frozen=True)
class Line:
    """One line of a table: its labels, a cell for each headline score, how many runs."""

    labels: Sequence[str]
    cells: Sequence[Spread | None]
    scored: int | None = None  # runs; None of an encoder that no seed changes
    failed: int = 0

    def texts(self) -> list[str]:
        """Return the line as words and numbers."""
        counted = "" if self.scored is None else str(self.scored)
        failed = f" ({self.failed} failed)" if self.failed else ""
        return [*self.labels, *map(_text, self.cells), counted + failed]


@dataclass(frozen=True)
class Table:
    """A line per point, then teacher and chance, as words and numbers; `left` columns are words."""

    titles: list[str]
    rows: list[list[str]]
    left: int


def laid_out(result: Mapping[str, Any]) -> Table:
    """Return the table of a sweep's results, as sweep.json holds them."""
    axes = list(result["points"][0]["labels"])
    titles = [*axes, *_headlines(result), "n"]
    return Table(titles, [line.texts() for line in _lines(result)], len(axes))


def text_table(result: Mapping[str, Any]) -> str:
    """Return the table, then what failed and why."""
    table = laid_out(result)
    rows, left = [table.titles, *table.rows], table.left
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "   ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, *_notes(result)])


def markdown_table(result: Mapping[str, Any]) -> str:
    """Return the table as Markdown."""
    table = laid_out(result)
    rule = ["---"] * table.left + ["---:"] * (len(table.titles) - table.left)
    rows = [table.titles, rule, *table.rows]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in escaped), "", *_notes(result)])


def csv_table(result: Mapping[str, Any]) -> str:
    """Return the table as CSV: mean and sd of each headline score, unrounded."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    scores = [f"{name} {part}" for name in _headlines(result) for part in ("mean", "sd")]
    writer.writerow([*_axes(result), *scores, "n", "failed"])
    for line in _lines(result):
        numbers = [(cell or {}).get(part) for cell in line.cells for part in ("mean", "sd")]
        writer.writerow([*line.labels, *numbers, line.scored, line.failed])
    return file.getvalue().rstrip("\n")


def _axes(result: Mapping[str, Any]) -> list[str]:
    return list(result["points"][0]["labels"])


def _headlines(result: Mapping[str, Any]) -> list[str]:
    return [f"{probe} {score}" for probe, score in _columns(result)]


def _columns(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (probe, score) of each column: every headline, and what else some run has."""
    found = {
        (probe, score)
        for point in result["points"]
        for probes in point["scores"].values()
        for probe, scores in probes.items()
        for score in scores
    }
    columns = []
    for probe in result["probes"]:
        also = [(probe, score) for score in PROBES[probe].also if (probe, score) in found]
        headline = (probe, PROBES[probe].headline)
        columns += also if also and headline not in found else [*also, headline]
    return columns


def _lines(result: Mapping[str, Any]) -> list[Line]:
    points = result["points"]
    lines = [
        Line(
            labels=list(point["labels"].values()),
            cells=_cells(result, point, "student"),
            scored=sum(run["state"] == "scored" for run in point["runs"]),
            failed=sum(run["state"] == "failed" for run in point["runs"]),
        )
        for point in points
    ]
    return [*lines, *_fixed(result, "teacher"), *_fixed(result, "chance")]


def _fixed(result: Mapping[str, Any], encoder: str) -> list[Line]:
    """Return the lines of an encoder that no training changes: one for all points, as a rule.

    Points that are scored by other prompts have one of their own, with the labels they share.
    """
    alike: list[tuple[list[Spread | None], list[Mapping[str, str]]]] = []
    for point in result["points"]:
        cells = [
            None if cell is None else {**cell, "sd": None, "n": None}
            for cell in _cells(result, point, encoder)
        ]
        if not any(cells):
            continue
        same = next((labels for known, labels in alike if known == cells), None)
        if same is None:
            alike.append((cells, same := []))
        same.append(point["labels"])
    lines = []
    for cells, labels in alike:
        shared = [_shared(labels, axis) if len(alike) > 1 else "" for axis in _axes(result)]
        lines.append(Line([" ".join(filter(None, [encoder, shared[0]])), *shared[1:]], cells))
    return lines


def _shared(labels: Sequence[Mapping[str, str]], axis: str) -> str:
    names = {found[axis] for found in labels}
    return names.pop() if len(names) == 1 else ""


def _cells(
    result: Mapping[str, Any], point: Mapping[str, Any], encoder: str
) -> list[Spread | None]:
    found = point["scores"].get(encoder, {})
    return [found.get(probe, {}).get(score) for probe, score in _columns(result)]


def _text(cell: Spread | None) -> str:
    if cell is None:
        return "-"
    spread = "" if cell["sd"] is None else f" ± {cell['sd']:.4f}"
    return f"{cell['mean']:.4f}{spread}"


def _notes(result: Mapping[str, Any]) -> list[str]:
    """Say what the numbers are, and name each run that failed."""
    failed = [
        f"failed: {point['slug']}/seed-{run['seed']}: {run['error'].splitlines()[0]}"
        for point in result["points"]
        for run in point["runs"]
        if run["state"] == "failed"
    ]
    return [f"{SPREAD}; of students the averaged (EMA) weights", *failed]
