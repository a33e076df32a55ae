"""The command that trains students: parses, calls stage two, prints."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli_options import (
    PATH,
    allow_option,
    device_option,
    emit,
    json_option,
    recipe_option,
    set_option,
    shards_option,
)
from pipeline.cli_price import asked_price, price_options

if TYPE_CHECKING:
    from pipeline.recipe import Recipe


@click.command("train-student")
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
@recipe_option
@set_option
@click.option(
    "--model",
    metavar="NAME[@PX],..",
    help="Students, rn18 or any timm name; several share one stream.  [default: the recipe's]",
)
@click.option(
    "--run",
    "run_path",
    type=PATH,
    required=True,
    help="Folder for the run; of several, {model} in it is each one's name.",
)
@click.option("--resume", is_flag=True, help="Go on if the folder holds a run; else begin.")
@click.option(
    "--generation",
    type=click.IntRange(0),
    help="Of a cache that has grown.  [default: the resumed run's, else the newest]",
)
@click.option(
    "--workers",
    type=click.IntRange(0),
    help="Processes that load.  [default: one per core but one, 0 for little data]",
)
@click.option("--unchecked", is_flag=True, help="Do not hold images against their digests.")
@click.option("--online", is_flag=True, help="Ask the live teacher for targets, for comparison.")
@click.option("--tensorboard", is_flag=True, help="Write RUN/tensorboard too.")
@price_options(
    "Of an hour of all machines, of every rank together: recorded in the run, and told as money at "
    "the end."
)
@device_option
@json_option
def train_student(
    caches: tuple[Path, ...],
    shards: tuple[str, ...],
    allow: tuple[str, ...],
    recipe: str,
    overrides: tuple[str, ...],
    model: str | None,
    run_path: Path,
    resume: bool,
    generation: int | None,
    workers: int | None,
    unchecked: bool,
    online: bool,
    tensorboard: bool,
    price_per_hour: float | None,
    currency: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Stage two: train students from the cache. No teacher is loaded.

    Under torchrun, each process is a rank; training.batch_size is of all of them together. Hours
    are of training steps, without start-up, held-out scoring and checkpoints; of several students,
    which share a stream, each has those of all.
    """
    from pipeline import stage_two
    from pipeline.logbook import TensorBoard
    from pipeline.ranks import ranks_of_environment
    from pipeline.recipe import load_recipe
    from pipeline.shards import find_shards

    price = asked_price(price_per_hour, currency)
    loaded = load_recipe(recipe, overrides)
    runs = _runs(loaded, model, run_path)
    live = None
    if online:
        from pipeline.online import live_targets

        live = live_targets(device)
    metrics = stage_two.train(
        loaded,
        caches,
        find_shards(shards, allow=allow),
        runs,
        resume=resume,
        device=device,
        loading=stage_two.Loading(workers=workers, check_digests=not unchecked),
        generation=generation,
        on_epoch=TensorBoard() if tensorboard else None,
        live=live,
        price=price,
    )
    if ranks_of_environment().leads:
        found = [
            {"run": str(path), **metrics[path], **_spent(path, own)} for path, own in runs.items()
        ]
        names = {str(path): own.student.model for path, own in runs.items()}
        emit(
            found[0] if len(found) == 1 else {"runs": found},
            as_json,
            lambda _: "\n".join(
                f"{names[m['run']]} trained in {m['run']}: loss {m['loss']:.4f}{_told(m)}"
                for m in found
            ),
        )


def _spent(path: Path, recipe: "Recipe") -> dict[str, Any]:
    """Return a run's hours, and with a price what they cost."""
    from pipeline.price import price_of, training_hours
    from pipeline.rundir import RunDir

    run = RunDir(path)
    hours = training_hours(run.read_metrics(), recipe.training.batch_size)
    price = price_of(run.read_origin())
    if hours is None or price is None:
        return {"hours": hours}
    return {
        "hours": hours,
        "price": {"per_hour": price.per_hour, "currency": price.currency},
        "cost": price.of(hours),
    }


def _told(metrics: dict[str, Any]) -> str:
    """Say a run's hours, and with a price what they cost."""
    from pipeline.price import Price, span

    hours = metrics["hours"]
    if hours is None:
        return ""
    money = f", {Price(**metrics['price']).words(hours)}" if "price" in metrics else ""
    return f"; {span(hours)}{money}"


def _runs(recipe: "Recipe", models: str | None, folder: Path) -> "dict[Path, Recipe]":
    """Return the run folder of every student, with the recipe for it."""
    from dataclasses import replace

    from pipeline.errors import StudentError

    names = models.split(",") if models else [recipe.student.model]
    runs: dict[Path, Recipe] = {}
    for name in names:
        model, at, pixels = name.strip().partition("@")
        if at and not pixels.isdecimal():
            raise click.UsageError(f"--model {name!r}: expected NAME or NAME@PX, as in rn18@96")
        changed: dict[str, Any] = {"model": model} | ({"input_px": int(pixels)} if at else {})
        path = _folder(folder, name.strip(), several=len(names) > 1)
        if path in runs:
            raise StudentError(f"--model names {name} twice: a run folder holds one student")
        runs[path] = replace(recipe, student=replace(recipe.student, **changed))
    return runs


def _folder(folder: Path, name: str, *, several: bool) -> Path:
    """Return a student's run folder: {model} filled in, or a folder below if there are several."""
    if "{model}" in str(folder):
        return Path(str(folder).replace("{model}", name))
    return folder / name if several else folder
