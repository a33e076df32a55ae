"""What a cache of 1,000 units costs to run again, to open and to plan an epoch of.

The units are small (two digits each) and real: `beamclip teacher-cache` makes them from tars with a
tiny teacher. Every repetition is a fresh process. Prints JSON; `--units` and `--repeats` change the
size.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, row
from pipeline.datasets.known import write_known
from pipeline.prompt_file import load_prompts
from pipeline.shards import find_shards
from pipeline.tiny import TinyOptions, train_tiny_teacher

SAMPLES_PER_SHARD = 2
VIEWS = 2
BATCH_SIZE = 64  # of training; more than the rows of the cache would plan one step
_OPEN = f"""
import sys, time
from pipeline.cache.reader import TargetCache
from pipeline.order import plan_epoch
began = time.perf_counter()
cache = TargetCache.open(sys.argv[1])
opened = time.perf_counter()
rows = cache.column("valid").sum()
plan = plan_epoch(int(rows), {BATCH_SIZE}, 0, 0)
print(opened - began, time.perf_counter() - opened, len(plan))
"""


def rows() -> list[Row]:
    """Measure a cache of 1,000 units."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), units=1000, repeats=3)
    named = (
        ("no_op", "1,000 units, complete: the command again", "< 10"),
        ("import", "of which importing torch and open_clip", ""),
        ("open", "1,000 units: opening the cache", "< 1"),
        ("plan", "1,000 units: planning an epoch", "< 1"),
    )
    return [row(name, found[f"{key}_seconds"], "s", target) for key, name, target in named]


def measure(folder: Path, units: int, repeats: int) -> dict[str, Any]:
    """Make a cache in `folder`; return seconds of making, of a no-op, of opening, of planning.

    A no-op is the whole command; `import_seconds` is its share for torch and open_clip.
    """
    command = _stage_one(folder, units)
    made = json.loads(_run(command))
    assert made["units"] == made["made"] == units, made
    no_ops, imports, opens, plans = [], [], [], []
    for _ in range(repeats):
        began = time.perf_counter()
        again = json.loads(_run(command))
        no_ops.append(time.perf_counter() - began)
        assert again["made"] == 0
        began = time.perf_counter()
        _run([sys.executable, "-c", "import torch, open_clip"])
        imports.append(time.perf_counter() - began)
        opened, planned, steps = _run([sys.executable, "-c", _OPEN, str(folder / "cache")]).split()
        assert int(steps) > 0
        opens.append(float(opened))
        plans.append(float(planned))
    return {
        "units": units,
        "samples": sum(count["seen"] for count in made["counts"].values()),
        "made_seconds": made["seconds"],
        "no_op_seconds": no_ops,
        "import_seconds": imports,
        "open_seconds": opens,
        "plan_seconds": plans,
    }


def _stage_one(folder: Path, units: int) -> list[str]:
    """Write shards, teacher and recipe; return the command that makes the cache of them."""
    write_known("digits", folder / "digits", per_shard=SAMPLES_PER_SHARD)
    found = find_shards([str(folder / "digits")])
    train = [shard for shard in found if shard.split == "train"][: 2 * units // 5]
    test = [shard for shard in found if shard.split == "test"][: units - 2 * len(train)]
    if 2 * len(train) + len(test) != units:
        raise SystemExit(f"digits make no {units} units of {SAMPLES_PER_SHARD} samples")
    listed = folder / "shards.txt"
    listed.write_text("".join(f"{shard.path}\n" for shard in train + test), encoding="utf-8")
    spec = TinyOptions(epochs=1)
    train_tiny_teacher(find_shards([f"@{listed}"]), load_prompts("digits"), folder / "t", spec)
    command = [sys.executable, "-m", "pipeline.cli", "teacher-cache", "--json", "--device", "cpu"]
    command += ["--shards", f"@{listed}", "--cache", str(folder / "cache"), "--recipe", "digits"]
    return [*command, "--set", f"teacher.model=local-dir:{folder / 't'}", "--views", str(VIEWS)]


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Measure in a temporary folder and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), arguments.units, arguments.repeats), indent=1))


if __name__ == "__main__":
    main()
