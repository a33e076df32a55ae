"""Draws what the epochs of several runs recorded, and accuracy against the number of prompts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from pipeline.report.charts import Series, line_chart
from pipeline.report.collect import RunFacts
from pipeline.report.svg import Chart

_TITLES = {
    "held_out_zeroshot": "Held-out zero-shot accuracy, %",
    "held_out_agreement": "Held-out teacher agreement, %",
    "held_out_knn": "Held-out kNN accuracy, %",
    "held_out_cosine": "Held-out cosine to target",
    "loss": "Loss, weighted sum",
    "learning_rate": "Learning rate",
    "images_per_second": "Images per second",
    "data_wait_share": "Time waiting for data, %",
}
_FIRST = tuple(name for name in _TITLES if name.startswith("held_out"))
_LAST = ("learning_rate", "images_per_second", "data_wait_share")
_NOT_DRAWN = {"epoch", "step", "seconds"}
_SAMPLED = re.compile(r"\.(\d+)of\d+-seed\d+$")


@dataclass(frozen=True)
class Curves:
    """Charts of the same runs, with which each run is drawn by: (place among colours, name)."""

    charts: tuple[Chart, ...]
    legend: tuple[tuple[int, str], ...]


def learning_curves(runs: Sequence[RunFacts], places: Mapping[str, int]) -> Curves | None:
    """Draw the numbers of metrics.jsonl by epoch (BeamCLIP, Fig. 8 and 9), or None without any.

    places: each run's place among the colours, the same on the whole page.
    """
    with_lines = [run for run in runs if run.epochs]
    keys = {key for run in with_lines for line in run.epochs for key in _numbers(line)}
    if not keys:
        return None
    charts = tuple(
        line_chart(
            _TITLES.get(key, f"Loss term {key}"),
            _series(key, with_lines, places),
            x_name="epoch",
        )
        for key in _ordered(keys)
    )
    return Curves(charts, tuple((places[run.name], run.name) for run in with_lines))


def prompts_chart(runs: Sequence[RunFacts]) -> Chart | None:
    """Draw zero-shot accuracy by the number of training anchors (BeamCLIP, Fig. 4).

    A line for each student model, through the mean of its runs that were trained with as many. None
    unless some model was trained with two numbers of them.
    """
    found: dict[str, dict[int, list[float]]] = {}
    for run in runs:
        count, top1 = anchors_of(run), run.score("student", "zeroshot", "top1")
        if count is not None and top1 is not None:
            found.setdefault(run.model, {}).setdefault(count, []).append(top1 * 100)
    lines = {model: counts for model, counts in found.items() if len(counts) > 1}
    if not lines:
        return None
    series = [
        Series(model, place, tuple((float(n), fmean(counts[n])) for n in sorted(counts)))
        for place, (model, counts) in enumerate(lines.items())
    ]
    teachers = [run.score("teacher", "zeroshot", "top1") for run in runs]
    level = next((("teacher", top1 * 100) for top1 in teachers if top1 is not None), None)
    return line_chart(
        "Zero-shot accuracy by training prompts, %",
        series,
        x_name="classes with a prompt in training",
        level=level,
    )


def anchors_of(run: RunFacts) -> int | None:
    """Return how many classes a run's training anchors stand for, or None if it is not known."""
    if run.anchors is None:
        return None
    if sampled := _SAMPLED.search(run.anchors):
        return int(sampled.group(1))
    from pipeline.cache.reader import read_anchors
    from pipeline.errors import BeamclipError

    try:
        return len(set(read_anchors(run.cache_path, run.anchors).class_names))
    except (BeamclipError, OSError):
        return None


def _numbers(line: Mapping[str, object]) -> list[str]:
    return [
        key
        for key, value in line.items()
        if key not in _NOT_DRAWN and isinstance(value, int | float)
    ]


def _ordered(keys: set[str]) -> list[str]:
    """Put what a reader wants first, first: held-out scores, losses, then how it ran."""
    middle = sorted(keys - set(_FIRST) - set(_LAST) - {"loss"})
    order = [*_FIRST, "loss", *middle, *_LAST]
    return [key for key in order if key in keys]


def _series(key: str, runs: Sequence[RunFacts], places: Mapping[str, int]) -> list[Series]:
    found, scale = list[Series](), 100 if _TITLES.get(key, "").endswith("%") else 1
    for run in runs:
        points = tuple(
            (float(line["epoch"]) + 1, float(line[key]) * scale)
            for line in run.epochs
            if key in line
        )
        if points:
            found.append(Series(run.name, places[run.name], points))
    return found
