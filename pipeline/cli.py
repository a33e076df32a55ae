"""The command line: parses, calls one stage function, prints. Stages are imported in commands."""

import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from pipeline import __version__
from pipeline.errors import BeamclipError

_PATH = click.Path(path_type=Path)
_INTERRUPTED = ("Interrupted", 130)
_shards = click.option(
    "--shards",
    multiple=True,
    required=True,
    metavar="PATTERN",
    help="Tars, a folder of tars, a glob, a {000..100} range, @list-file or SPLIT=PATTERN.",
)
_recipe = click.option("--recipe", required=True, help="A recipe's name, or a .yaml file.")
_set = click.option(
    "--set", "overrides", multiple=True, metavar="A.B=C", help="Override a field of the recipe."
)
_device = click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:N].")
_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


class _Terminated(KeyboardInterrupt):
    """SIGTERM, raised where it came in, so that it unwinds as Ctrl-C does."""


@contextlib.contextmanager
def _termination_raised() -> Iterator[None]:
    """Turn SIGTERM into an exception, unless whoever started this process decided otherwise."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise _Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Commands(click.Group):
    """Turns user errors into a message and an exit code, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _termination_raised():
                return super().invoke(ctx)
        except BeamclipError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt as stop:
            word, code = ("Terminated", 143) if isinstance(stop, _Terminated) else _INTERRUPTED
            click.echo(f"{word}; what was finished is kept, run again to go on.", err=True)
            ctx.exit(code)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            click.echo(f"Error: {where}{error.strerror or error}", err=True)
            ctx.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Turn a large frozen CLIP teacher into a small student, offline, once.

    Stage one (teacher-cache) embeds images and prompts into a cache; stage two (train-student)
    trains any number of students from it, with no teacher in memory; probe scores them.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # Threads that spin while they wait slow a neighbour down up to tenfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@main.group()
def data() -> None:
    """Write datasets as WebDataset shards."""


@data.command("digits")
@click.option("--out", type=_PATH, required=True, help="Folder for the shards.")
@click.option("--per-shard", default=300, show_default=True, type=click.IntRange(1))
@_json
def data_digits(out: Path, per_shard: int, as_json: bool) -> None:
    """scikit-learn's bundled digits: 1,257 train and 540 test images, no download."""
    from pipeline.datasets import write_digits

    _print_shards(write_digits(out, per_shard=per_shard), as_json)


@data.command("folder")
@click.argument("source", type=_PATH)
@click.option("--out", type=_PATH, required=True, help="Folder for the shards.")
@click.option("--per-shard", default=1000, show_default=True, type=click.IntRange(1))
@click.option("--holdout", default=0.0, show_default=True, help="Share of images for test.")
@_json
def data_folder(source: Path, out: Path, per_shard: int, holdout: float, as_json: bool) -> None:
    """Any folder of images; class sub-folders and train/val/test folders are understood."""
    from pipeline.datasets import write_folder

    _print_shards(write_folder(source, out, per_shard=per_shard, holdout=holdout), as_json)


@main.group()
def teacher() -> None:
    """Make a teacher where none can be downloaded."""


@teacher.command("tiny")
@_shards
@click.option("--prompts", required=True, help="A prompt file's name, or a .yaml file.")
@click.option("--to", "folder", type=_PATH, required=True, help="Folder of the open_clip model.")
@click.option("--epochs", default=15, show_default=True, type=click.IntRange(1))
@click.option("--image-px", default=32, show_default=True, type=click.IntRange(32))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@_json
def teacher_tiny(
    shards: tuple[str, ...],
    prompts: str,
    folder: Path,
    epochs: int,
    image_px: int,
    seed: int,
    as_json: bool,
) -> None:
    """Train a small open_clip model on labelled shards and save it as a local-dir: folder."""
    from pipeline.prompts import load_prompts
    from pipeline.shards import find_shards
    from pipeline.tiny import TinyOptions, train_tiny_teacher

    spec = TinyOptions(epochs=epochs, image_px=image_px, seed=seed)
    result = train_tiny_teacher(find_shards(shards), load_prompts(prompts), folder, spec)
    _emit(
        {"folder": str(folder), **result},
        as_json,
        lambda r: f"teacher in {folder}: loss {r['loss']:.3f}, logit scale {r['logit_scale']:.1f}",
    )


@main.command("teacher-cache")
@_shards
@click.option("--cache", type=_PATH, required=True, help="Folder of the cache, new or begun.")
@_recipe
@_set
@click.option(
    "--workers",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Processes on this machine; 0 works in this one.",
)
@click.option("--memory-limit", metavar="SIZE", help="Kill one of --workers over it, as 8GiB.")
@click.option("--scheduler", metavar="ADDRESS", help="Work on a running dask cluster.")
@click.option("--scheduler-file", type=_PATH, help="As --scheduler; the file holds the address.")
@click.option("--insecure", is_flag=True, help="Trust a scheduler that is remote and unencrypted.")
@_device
@_json
def teacher_cache(
    shards: tuple[str, ...],
    cache: Path,
    recipe: str,
    overrides: tuple[str, ...],
    workers: int,
    memory_limit: str | None,
    scheduler: str | None,
    scheduler_file: Path | None,
    insecure: bool,
    device: str,
    as_json: bool,
) -> None:
    """Stage one: run the teacher over shards and prompts; leave a sealed cache.

    Run it again after a crash: what is published stays, the rest is made.
    """
    from pipeline.cluster import Place

    try:
        place = Place(
            workers=workers,
            memory_limit=memory_limit,
            scheduler=scheduler,
            scheduler_file=scheduler_file,
            insecure=insecure,
            device=device,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None

    from pipeline.embed import build_cache
    from pipeline.recipe import load_recipe
    from pipeline.shards import find_shards

    loaded = load_recipe(recipe, overrides)
    report = build_cache(
        cache,
        find_shards(shards),
        loaded.cache_options(),
        recipe=loaded.resolved(),
        place=place,
    )
    _emit(report.as_mapping(), as_json, lambda _: report.text())


@main.command("train-student")
@click.option("--cache", type=_PATH, required=True, help="A sealed cache.")
@_shards
@_recipe
@_set
@click.option("--model", help="A student: rn18, rn50 or any timm name.  [default: the recipe's]")
@click.option("--run", "run_path", type=_PATH, required=True, help="Folder for the run.")
@click.option("--resume", is_flag=True, help="Go on if the folder holds a run; else begin.")
@click.option("--workers", default=0, show_default=True, type=click.IntRange(0), help="Loaders.")
@_device
@_json
def train_student(
    cache: Path,
    shards: tuple[str, ...],
    recipe: str,
    overrides: tuple[str, ...],
    model: str | None,
    run_path: Path,
    resume: bool,
    workers: int,
    device: str,
    as_json: bool,
) -> None:
    """Stage two: train a student from the cache. No teacher is loaded."""
    from pipeline import stage_two
    from pipeline.recipe import load_recipe
    from pipeline.shards import find_shards

    chosen = (*overrides, f"student.model={model}") if model else overrides
    loaded = load_recipe(recipe, chosen)
    metrics = stage_two.train(
        loaded, cache, find_shards(shards), run_path, resume=resume, workers=workers, device=device
    )
    _emit(
        {"run": str(run_path), **metrics},
        as_json,
        lambda m: f"{loaded.student.model} trained in {run_path}: loss {m['loss']:.4f}",
    )


@main.command()
@click.option("--run", "run_path", type=_PATH, required=True, help="Folder of a finished run.")
@click.option("--cache", type=_PATH, help="The cache.  [default: the one the run was trained from]")
@click.option("--shards", multiple=True, metavar="PATTERN", help="[default: those of the run]")
@click.option("--probes", metavar="A,B", help="[default: those of the run's recipe]")
@click.option("--workers", default=0, show_default=True, type=click.IntRange(0), help="Loaders.")
@_device
@_json
def probe(
    run_path: Path,
    cache: Path | None,
    shards: tuple[str, ...],
    probes: str | None,
    workers: int,
    device: str,
    as_json: bool,
) -> None:
    """Score a run's student beside its teacher and chance; writes RUN/probe.json."""
    from pipeline import stage_two
    from pipeline.tables import score_table

    chosen = probes.split(",") if probes else None
    scores = stage_two.probe(run_path, cache, shards, probes=chosen, workers=workers, device=device)
    _emit(scores, as_json, score_table)


def _print_shards(paths: list[Path], as_json: bool) -> None:
    names = [str(path) for path in paths]
    _emit({"shards": names}, as_json, lambda _: f"{len(names)} shards in {paths[0].parent}")


def _emit(result: dict[str, Any], as_json: bool, text: Callable[[dict[str, Any]], str]) -> None:
    click.echo(json.dumps(result, indent=1) if as_json else text(result))


if __name__ == "__main__":
    sys.exit(main())
