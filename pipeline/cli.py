"""The command line: parses, calls one stage function, prints. Stages are imported in commands."""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pipeline import __version__
from pipeline.cli_anchors import anchors
from pipeline.cli_cache import cache
from pipeline.cli_captions import captions
from pipeline.cli_data import data
from pipeline.cli_frozen import frozen
from pipeline.cli_glue import glue
from pipeline.cli_options import PATH as _PATH
from pipeline.cli_options import allow_option as _allow
from pipeline.cli_options import device_option as _device
from pipeline.cli_options import emit as _emit
from pipeline.cli_options import json_option as _json
from pipeline.cli_options import recipe_option as _recipe
from pipeline.cli_options import set_option as _set
from pipeline.cli_options import shards_option as _shards
from pipeline.cli_pretrain import pretrain
from pipeline.cli_probe import probe
from pipeline.cli_report import report
from pipeline.cli_sweep import sweep
from pipeline.cli_text import text_encoder
from pipeline.cli_train import train_student
from pipeline.errors import BeamclipError

_INTERRUPTED = ("Interrupted", 130)


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
    from pipeline.prompt_file import load_prompts
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
@_allow
@click.option("--cache", type=_PATH, required=True, help="Folder of the cache, new or begun.")
@_recipe
@_set
@click.option("--views", type=click.IntRange(1), help="Views per image.  [default: the recipe's]")
@click.option("--extend", is_flag=True, help="Add shards or views that the cache lacks.")
@click.option(
    "--views-per-unit",
    type=click.IntRange(1),
    help="The most views of one unit, which is what a crash may cost.  [default: all of them]",
)
@click.option(
    "--workers",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Processes on this machine; 0 works in this one.",
)
@click.option(
    "--renderers",
    type=click.IntRange(0),
    help="Processes that decode, for each that embeds.  [default: one per core, 0 for little data]",
)
@click.option("--memory-limit", metavar="SIZE", help="Kill one of --workers over it, as 8GiB.")
@click.option("--scheduler", metavar="ADDRESS", help="Work on a running dask cluster.")
@click.option("--scheduler-file", type=_PATH, help="As --scheduler; the file holds the address.")
@click.option("--insecure", is_flag=True, help="Trust a scheduler that is remote and unencrypted.")
@_device
@_json
def teacher_cache(
    shards: tuple[str, ...],
    allow: tuple[str, ...],
    cache: Path,
    recipe: str,
    overrides: tuple[str, ...],
    views: int | None,
    extend: bool,
    views_per_unit: int | None,
    workers: int,
    renderers: int | None,
    memory_limit: str | None,
    scheduler: str | None,
    scheduler_file: Path | None,
    insecure: bool,
    device: str,
    as_json: bool,
) -> None:
    """Stage one: run the teacher over shards and prompts; leave a sealed cache.

    Run it again after a crash: what is published stays, the rest is made. More shards or views
    than the cache holds are refused without --extend, which adds them as its next generation.
    """
    place = _place(
        workers=workers,
        memory_limit=memory_limit,
        scheduler=scheduler,
        scheduler_file=scheduler_file,
        insecure=insecure,
        device=device,
        renderers=renderers,
    )
    from pipeline.embed import build_cache
    from pipeline.recipe import load_recipe
    from pipeline.shards import find_shards

    loaded = load_recipe(recipe, (*overrides, f"views={views}") if views else overrides)
    report = build_cache(
        cache,
        find_shards(shards, allow=allow),
        loaded.cache_options(),
        recipe=loaded.resolved(),
        place=place,
        extend=extend,
        views_per_unit=views_per_unit,
    )
    _emit(report.as_mapping(), as_json, lambda _: report.text())


def _place(**options: Any) -> Any:
    """Return where units are made; options that contradict each other are a usage error."""
    from pipeline.cluster import Place

    try:
        return Place(**options)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


main.add_command(anchors)
main.add_command(cache)
main.add_command(captions)
main.add_command(data)
main.add_command(frozen)
main.add_command(glue)
main.add_command(pretrain)
main.add_command(probe)
main.add_command(sweep)
main.add_command(report)
main.add_command(text_encoder)
main.add_command(train_student)


if __name__ == "__main__":
    sys.exit(main())
