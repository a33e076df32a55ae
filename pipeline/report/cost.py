"""Reckons what runs cost: hours, money, bytes, images per second."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.cache import layout
from pipeline.cache.reader import read_manifest
from pipeline.errors import CacheError
from pipeline.price import Price, price_of, training_hours
from pipeline.price import span as span_of
from pipeline.report.collect import RunFacts, parameters
from pipeline.report.markdown import escaped
from pipeline.report.svg import NONE
from pipeline.rundir import WEIGHTS

# What a table of costs says of itself.
COUNTED = (
    "time is of training steps, without start-up, held-out scoring and checkpoints; students "
    "trained from one stream each have the time of all"
)


@dataclass(frozen=True)
class Cost:
    """What one run cost; None where nothing says.

    hours: of training steps, see `price.training_hours`. money: in words, what these cost at the
    price of an hour. cache_bytes: of all of the cache's files, which every student trained from it
    shares.
    """

    epochs: int
    hours: float | None
    money: str | None
    images_per_second: float | None
    data_wait_share: float | None
    parameters: int | None
    weights_bytes: int | None
    cache_bytes: int | None


def cost_of(run: RunFacts, price: Price | None = None) -> Cost:
    """Reckon one run's cost from its lines, its weights and its cache.

    price: of an hour; by default the one that the run records, if it does.
    """
    rates = [float(line["images_per_second"]) for line in run.epochs if "images_per_second" in line]
    waits = [float(line["data_wait_share"]) for line in run.epochs if "data_wait_share" in line]
    weights = run.path / WEIGHTS["student"]
    hours = training_hours(run.epochs, int(run.recipe["training"]["batch_size"]))
    price = price or price_of(run.origin)
    return Cost(
        epochs=len(run.epochs),
        hours=hours,
        money=None if price is None or hours is None else price.words(hours),
        images_per_second=float(np.median(rates)) if rates else None,
        data_wait_share=float(np.mean(waits)) if waits else None,
        parameters=parameters(run),
        weights_bytes=weights.stat().st_size if weights.exists() else None,
        cache_bytes=folder_bytes(run.cache_path),
    )


def folder_bytes(folder: Path) -> int | None:
    """Return the bytes of all files below a folder, or None if it is not there."""
    if not folder.is_dir():
        return None
    files = (Path(top) / name for top, _, names in os.walk(folder) for name in names)
    return sum(file.stat().st_size for file in files)


def size(count: int | None) -> str:
    """Return bytes as a reader takes them in."""
    if count is None:
        return NONE
    value, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 1000 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:.3g} {unit}" if value < 999.5 or unit == "TB" else f"{value:.0f} {unit}"


def span(hours: float | None) -> str:
    """Return hours as seconds, minutes or hours, whichever reads best."""
    return NONE if hours is None else span_of(hours)


def cost_markdown(costs: Sequence[tuple[RunFacts, Cost]]) -> str:
    """Return time, and money where there is a price, as a Markdown table of a line for each run."""
    rows = [["", "student", "epochs", "training", "cost"], ["---", "---", "---:", "---:", "---:"]]
    rows += [
        [run.name, run.model, str(cost.epochs), span(cost.hours), cost.money or NONE]
        for run, cost in costs
    ]
    lines = ["| " + " | ".join(map(escaped, row)) + " |" for row in rows]
    return "\n".join([f"Cost: {COUNTED}", "", *lines]) + "\n"


def fingerprint_of(run: RunFacts) -> str | None:
    """Return the fingerprint of the run's cache, or None if the cache is gone or unreadable."""
    try:
        manifest = read_manifest(run.cache_path, run.origin["cache"]["generation"])
    except (CacheError, OSError):
        return None
    return layout.fingerprint(manifest)
