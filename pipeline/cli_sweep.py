"""The command that trains and scores a grid of recipes: parses, calls the sweep, prints."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pipeline.cli_options import (
    PATH,
    allow_option,
    device_option,
    emit,
    json_option,
    set_option,
    shards_option,
)


@click.command()
@click.argument("file", metavar="FILE")
@click.option(
    "--cache",
    "caches",
    type=PATH,
    required=True,
    multiple=True,
    help="A sealed cache; once more for each of the recipe's further_teachers.",
)
@shards_option
@allow_option
@click.option("--out", type=PATH, required=True, help="Folder for runs and results.")
@set_option
@click.option("--seeds", metavar="A,B", help="[default: the sweep's]")
@click.option("--workers", type=click.IntRange(0), help="Loaders.  [default: as train-student]")
@click.option("--dry-run", is_flag=True, help="Check all, train nothing; say what is left to do.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the table as CSV.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the table as Markdown.")
@device_option
@json_option
def sweep(
    file: str,
    caches: tuple[Path, ...],
    shards: tuple[str, ...],
    allow: tuple[str, ...],
    out: Path,
    overrides: tuple[str, ...],
    seeds: str | None,
    workers: int | None,
    dry_run: bool,
    as_csv: bool,
    as_markdown: bool,
    device: str,
    as_json: bool,
) -> None:
    """Train and score a grid of recipes from one cache; FILE is a sweep's name, or a .yaml file.

    Run it again after a crash, or with more rows, values or seeds: what is finished stays. Writes
    OUT/sweep.json after every run; --json prints the same.
    """
    if as_json + as_csv + as_markdown > 1:
        raise click.UsageError("give one of --json, --csv and --markdown")
    from pipeline import sweep_table
    from pipeline.grid import load_sweep, points_of, with_seeds
    from pipeline.shards import find_shards
    from pipeline.sweep import Inputs, plan_sweep, run_sweep

    loaded = load_sweep(file)
    if seeds is not None:
        loaded = with_seeds(loaded, _numbers(seeds))
    inputs = Inputs(
        caches,
        find_shards(shards, allow=allow),
        # Stores must be allowed; those of a run, which is of these shards, are.
        patterns=() if allow else shards,
        device=device,
        workers=workers,
        notify=lambda line: click.echo(line, err=True),
    )
    points = points_of(loaded, overrides)
    if dry_run:
        emit(plan_sweep(loaded, points, inputs, out), as_json, _plan)
        return
    result = run_sweep(loaded, points, inputs, out)
    table = sweep_table.text_table
    if as_csv or as_markdown:
        table = sweep_table.csv_table if as_csv else sweep_table.markdown_table
    emit(result, as_json, table)
    _raise_for_failed(result)


def _numbers(seeds: str) -> list[int]:
    words = seeds.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise click.UsageError(f"--seeds {seeds!r}: expected whole numbers, as in 0,1,2")
    return [int(word) for word in words]


def _plan(result: Mapping[str, Any]) -> str:
    """Name every run with its state, and count them."""
    runs = [run for point in result["points"] for run in point["runs"]]
    states = Counter(run["state"] for run in runs)
    left = len(runs) - states["scored"] - states["trained"]
    return "\n".join(
        [
            *(f"{run['folder']}: {run['state']}" for run in runs),
            f"{len(result['points'])} points, {len(runs)} runs: {left} to train, "
            f"{len(runs) - states['scored']} to score",
        ]
    )


def _raise_for_failed(result: Mapping[str, Any]) -> None:
    from pipeline.errors import LossesError

    runs = [run for point in result["points"] for run in point["runs"]]
    failed = [run for run in runs if run["state"] == "failed"]
    if failed:
        lines = [f"  {run['folder']}: {run['error']}" for run in failed]
        head = f"{len(failed)} of {len(runs)} runs failed; all others are done:"
        raise LossesError("\n".join([head, *lines]))
