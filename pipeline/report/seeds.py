"""Finds the sweeps that runs are of, and their scores summed up over seeds, for the page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.report.collect import RunFacts
from pipeline.sweep_table import SPREAD, laid_out


@dataclass(frozen=True)
class SweepView:
    """One sweep's table: a row for each of its points, then teacher and chance."""

    caption: str
    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sweep_views(runs: Sequence[RunFacts]) -> list[SweepView]:
    """Return the sweeps that any of the runs lies in, in the order of their first run.

    A sweep whose results cannot be read is left out: its runs are shown one by one anyway.
    """
    folders = dict.fromkeys(run.path.resolve().parent.parent for run in runs)
    return [view for folder in folders if (view := _view(folder / "sweep.json")) is not None]


def _view(path: Path) -> SweepView | None:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        table = laid_out(result)
        caption = f"Sweep {result['name']}: {SPREAD}, shares"
    except (OSError, TypeError, ValueError, KeyError, IndexError):
        return None
    return SweepView(caption, tuple(table.titles), tuple(map(tuple, table.rows)))
