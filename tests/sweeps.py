"""Sweeps over the tests' real inputs: writes the file, runs it, compares what two left."""

import json
from pathlib import Path
from typing import Any

import yaml

from pipeline import sweep
from pipeline.grid import load_sweep, points_of
from pipeline.shards import find_shards
from tests.runs import MODEL

OTHER = "test_efficientnet"
ROWS = [
    {"label": "ISM", "set": {"losses": {"ism": {"weight": 10}}}},
    {"label": "CSM", "set": {"losses": {"csm_ce": {}}}},
]


def write_sweep(path: Path, recipe: Path, **changed: Any) -> Path:
    """Write a sweep of four runs of an epoch: two rows, two seeds; None takes a key away."""
    fields = {
        "name": "shapes",
        "recipe": str(recipe),
        "set": {"training.epochs": 1, "student.model": MODEL},
        "rows": ROWS,
        "seeds": [0, 1],
        "probes": ["zeroshot"],
        **changed,
    }
    kept = {key: value for key, value in fields.items() if value is not None}
    path.write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
    return path


def run_file(file: Path, cache: Path, shards: Path, out: Path) -> dict[str, Any]:
    """Run a sweep file in this process."""
    loaded = load_sweep(str(file))
    inputs = sweep.Inputs([cache], find_shards([str(shards)]), device="cpu", workers=0)
    return sweep.run_sweep(loaded, points_of(loaded), inputs, out)


def read(out: Path) -> dict[str, Any]:
    """Return what a sweep left in sweep.json."""
    return dict(json.loads((out / "sweep.json").read_text(encoding="utf-8")))


def stamps(out: Path, pattern: str) -> dict[str, int]:
    """Return when each file of a sweep was written."""
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.glob(pattern)}
