"""Reckons what runs cost: hours, bytes, images per second."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.cache import layout
from pipeline.cache.reader import read_manifest
from pipeline.errors import CacheError
from pipeline.report.collect import RunFacts, parameters
from pipeline.report.svg import NONE
from pipeline.rundir import WEIGHTS


@dataclass(frozen=True)
class Cost:
    """What one run cost; None where nothing says.

    hours: of training steps, from images per second, without held-out scoring. cache_bytes: of all
    of the cache's files, which every student trained from it shares.
    """

    epochs: int
    hours: float | None
    images_per_second: float | None
    data_wait_share: float | None
    parameters: int | None
    weights_bytes: int | None
    cache_bytes: int | None


def cost_of(run: RunFacts) -> Cost:
    """Reckon one run's cost from its lines, its weights and its cache."""
    rates = [float(line["images_per_second"]) for line in run.epochs if "images_per_second" in line]
    waits = [float(line["data_wait_share"]) for line in run.epochs if "data_wait_share" in line]
    weights = run.path / WEIGHTS["student"]
    return Cost(
        epochs=len(run.epochs),
        hours=_hours(run),
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
    if hours is None:
        return NONE
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"


def fingerprint_of(run: RunFacts) -> str | None:
    """Return the fingerprint of the run's cache, or None if the cache is gone or unreadable."""
    try:
        manifest = read_manifest(run.cache_path, run.origin["cache"]["generation"])
    except (CacheError, OSError):
        return None
    return layout.fingerprint(manifest)


def _hours(run: RunFacts) -> float | None:
    """Add up the epochs: images of each (steps times batch) by its images per second."""
    batch, before, seconds = int(run.recipe["training"]["batch_size"]), 0, 0.0
    for line in run.epochs:
        rate = float(line.get("images_per_second") or 0)
        if rate <= 0 or "step" not in line:
            return None
        seconds += (int(line["step"]) - before) * batch / rate
        before = int(line["step"])
    return seconds / 3600 if run.epochs else None
