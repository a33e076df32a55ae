"""Runs the benchmarks: python -m benchmarks [NAME..]; prints one table and writes one JSON."""

import importlib
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Row
from pipeline import runtime

NAMES = (
    *("pixels", "host", "clip_retrieval", "device", "space", "engine", "many_units"),
    *("loader", "training", "probe"),
)


PATH = Path("data/bench.json")


def main(names: list[str]) -> None:
    """Run the benchmarks of these names, by default all."""
    logging.basicConfig(level=logging.ERROR)
    found: dict[str, list[Row]] = {}
    for name in names or NAMES:
        print(f"{name}...", file=sys.stderr)
        found[name] = importlib.import_module(f"benchmarks.{name}").rows()
        print(*("  ".join(item.as_text()) for item in found[name]), sep="\n", file=sys.stderr)
        _write(found)  # so far: what comes after may fail
    table = Table("what", "median", "least to greatest", "target", "note")
    for rows in found.values():
        for item in rows:
            table.add_row(*item.as_text())
    Console(width=150).print(table)
    print(f"written to {PATH}")


def _write(found: dict[str, list[Row]]) -> None:
    result = {
        "commit": runtime.git_commit(),
        "versions": runtime.versions(),
        "rows": {name: [asdict(item) for item in rows] for name, rows in found.items()},
    }
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
