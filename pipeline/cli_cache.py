"""The commands that look after a cache: plan, info, verify, repair, diff."""

from pathlib import Path
from typing import Any

import click

from pipeline.cli_options import (
    PATH,
    device_option,
    emit,
    json_option,
    set_option,
    shards_option,
)
from pipeline.errors import BeamclipError, LossesError

_BOUND = 1 - 1e-4
_teacher = click.option(
    "--teacher",
    metavar="MODEL",
    help="Where the teacher lies today.  [default: as the cache's recipe names it]",
)


@click.group()
def cache() -> None:
    """Look after a cache: its cost beforehand, what it is, whether it is whole, mending it."""


@cache.command("plan")
@click.option(
    "--shards", multiple=True, metavar="PATTERN", help="Calibrate on these; needs --recipe."
)
@click.option("--recipe", help="Calibrate with this recipe's teacher and schedule.")
@set_option
@click.option("--samples", type=click.IntRange(1), help="Without --shards: how many images.")
@click.option(
    "--dim", default=512, show_default=True, type=click.IntRange(1), help="With --samples."
)
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="With --samples: views/s.")
@click.option("--views", default="10,50,200", show_default=True, metavar="V,V", help="To compare.")
@click.option("--renderers", type=click.IntRange(0), help="As of teacher-cache.")
@device_option
@json_option
def cache_plan(
    shards: tuple[str, ...],
    recipe: str | None,
    overrides: tuple[str, ...],
    samples: int | None,
    dim: int,
    rate: float | None,
    views: str,
    renderers: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Foretell disk, teacher time and when a cache pays, for several numbers of views.

    With --shards and --recipe, some seconds of stage one are run on this machine to measure its
    rate; with --samples and --rate, the rate is taken as given.
    """
    counts = _counts(views)
    calibrated, given = bool(shards or recipe), bool(samples or rate)
    if calibrated == given or bool(shards) != bool(recipe) or bool(samples) != bool(rate):
        raise click.UsageError("give --shards and --recipe, or --samples and --rate")
    from pipeline import plan

    if samples and rate:
        rates = plan.given_rates(samples, dim, rate)
    else:
        from pipeline.cluster import Place
        from pipeline.recipe import load_recipe
        from pipeline.shards import find_shards

        place = Place(device=device, renderers=renderers)
        options = load_recipe(recipe or "", overrides).cache_options()
        rates = plan.calibrate(find_shards(shards), options, place)
    found = plan.plan_cache(rates, counts)
    emit(found.as_mapping(), as_json, lambda _: found.text())


@cache.command("info")
@click.argument("path", metavar="CACHE", type=PATH)
@json_option
def cache_info(path: Path, as_json: bool) -> None:
    """Tell what a cache is, finished or not: made from what, how much of it, bytes, skips."""
    from pipeline.audit import info

    found = info.cache_info(path)
    emit(found.as_mapping(), as_json, lambda _: found.text())


@cache.command("verify")
@click.argument("path", metavar="CACHE", type=PATH)
@click.option("--full", is_flag=True, help="Read every chunk, and hold it against its digest.")
@click.option(
    "--reembed",
    "percent",
    metavar="P%",
    callback=lambda _context, _option, text: _percent(text),
    help="Recompute a random share of the targets with the live teacher; needs --shards.",
)
@click.option(
    "--shards", multiple=True, metavar="PATTERN", help="Of --reembed: all of the cache's."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of --reembed.")
@click.option(
    "--bound", default=_BOUND, show_default=True, type=click.FloatRange(-1, 1), help="Least cosine."
)
@_teacher
@device_option
@json_option
def cache_verify(
    path: Path,
    full: bool,
    percent: float | None,
    shards: tuple[str, ...],
    seed: int,
    bound: float,
    teacher: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Name every unit, array and view that is not as it was published; exits 3 if any is.

    By default seal, attributes, sums, small arrays and the presence of every chunk are checked.
    """
    from pipeline.audit import verify

    if (percent is None) == bool(shards):
        raise click.UsageError("--reembed P% and --shards PATTERN go together")
    verdict = verify.verify_cache(path, full=full)
    result: dict[str, Any] = {**verdict.as_mapping(), "reembed": None}
    text = verdict.text
    if percent is not None and verdict.generation is not None:
        from pipeline.audit.findings import Findings
        from pipeline.audit.reembed import reembed
        from pipeline.shards import find_shards

        again = reembed(
            path,
            find_shards(shards),
            Findings(verdict.problems),
            share=percent / 100,
            seed=seed,
            bound=bound,
            device=device,
            teacher=teacher,
        )
        result = {**verdict.as_mapping(), "reembed": again.as_mapping()}
        text = lambda: f"{verdict.text()}\n{again.text()}"  # noqa: E731
    emit(result, as_json, lambda _: text())
    if verdict.problems:
        raise LossesError(
            f"{len(verdict.problems)} problems in {path}: `beamclip cache repair {path} --shards "
            "PATTERN` makes damaged units anew"
        )


@cache.command("repair")
@click.argument("path", metavar="CACHE", type=PATH)
@shards_option
@_teacher
@click.option(
    "--prompts", metavar="FILE", help="The prompt file.  [default: as the cache's recipe names it]"
)
@click.option("--workers", default=0, show_default=True, type=click.IntRange(0), help="Processes.")
@device_option
@json_option
def cache_repair(
    path: Path,
    shards: tuple[str, ...],
    teacher: str | None,
    prompts: str | None,
    workers: int,
    device: str,
    as_json: bool,
) -> None:
    """Verify every chunk; make damaged and missing units, prompt sets and captions anew; seal.

    Works by the recipe that the cache keeps. What is whole is not touched.
    """
    from pipeline.audit.repair import repair_cache
    from pipeline.shards import find_shards

    report = repair_cache(
        path, find_shards(shards), workers=workers, device=device, teacher=teacher, prompts=prompts
    )
    emit(report.as_mapping(), as_json, lambda _: report.text())


@cache.command("diff")
@click.argument("a", metavar="A", type=PATH)
@click.argument("b", metavar="B", type=PATH)
@json_option
@click.pass_context
def cache_diff(context: click.Context, a: Path, b: Path, as_json: bool) -> None:
    """Compare two caches: what they were made from, and what they hold.

    Exits as diff does: 0 if they hold the same, 1 if they differ, 2 if one cannot be read.
    """
    from pipeline.audit.diff import diff_caches

    try:
        found = diff_caches(a, b)
    except BeamclipError as error:
        click.echo(f"Error: {error}", err=True)
        context.exit(2)
    emit(found.as_mapping(), as_json, lambda _: found.text())
    context.exit(0 if found.equal else 1)


def _counts(text: str) -> list[int]:
    """Return numbers of views, written 10,50,200."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise click.BadParameter(f"{text!r}: expected numbers of views, as in 10,50,200")
    return counts


def _percent(text: str | None) -> float | None:
    """Return a share in percent, written 1 or 1%."""
    if text is None:
        return None
    try:
        share = float(text.removesuffix("%"))
    except ValueError:
        share = 0.0
    if not 0 < share <= 100:
        raise click.BadParameter(f"{text!r}: expected a share above 0 and up to 100%, as in 1%")
    return share
