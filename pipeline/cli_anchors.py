"""The commands for a cache's prompt sets: anchors add, list, show, check."""

from pathlib import Path

import click

from pipeline.cli_options import PATH, device_option, emit, json_option

_cache_argument = click.argument("cache", type=PATH)
_prompts = click.option("--prompts", required=True, help="A prompt file's name, or a .yaml file.")
_sets = click.option("--sets", metavar="A,B", help="Prompt sets.  [default: all of the file]")


@click.group()
def anchors() -> None:
    """Add prompt sets to a cache, and look at those it has. No image is embedded."""


@anchors.command("add")
@_cache_argument
@_prompts
@_sets
@click.option(
    "--teacher",
    metavar="MODEL",
    help="Where the teacher lies today.  [default: as the cache's manifest names it]",
)
@device_option
@json_option
def anchors_add(
    cache: Path, prompts: str, sets: str | None, teacher: str | None, device: str, as_json: bool
) -> None:
    """Embed prompt sets with the text tower of the cache's teacher; a seal stays valid."""
    from pipeline.texts import add_anchors

    added = add_anchors(cache, prompts, _names(sets), device=device, teacher=teacher)
    emit(
        {"cache": str(cache), "added": added},
        as_json,
        lambda _: "\n".join(f"{n}: {'added' if new else 'there'}" for n, new in added.items()),
    )


@anchors.command("list")
@_cache_argument
@json_option
def anchors_list(cache: Path, as_json: bool) -> None:
    """List the prompt sets of a cache."""
    from pipeline.anchors import list_anchors

    found = list_anchors(cache)
    emit(
        {"anchors": [item.as_mapping() for item in found]},
        as_json,
        lambda _: "\n".join(item.line() for item in found) or "no anchors",
    )


@anchors.command("show")
@_cache_argument
@click.argument("name")
@json_option
def anchors_show(cache: Path, name: str, as_json: bool) -> None:
    """Show a prompt set: classes, templates, tokens, and the classes it tells apart worst."""
    from pipeline.anchors import show_anchors

    found = show_anchors(cache, name)
    emit(found.as_mapping(), as_json, lambda _: found.text())


@anchors.command("check")
@_cache_argument
@_prompts
@_sets
@json_option
def anchors_check(cache: Path, prompts: str, sets: str | None, as_json: bool) -> None:
    """Hold a prompt file against the cached anchors, and against the labels of a sealed cache."""
    from pipeline.anchors import check_anchors
    from pipeline.prompts import load_prompts

    result = check_anchors(cache, load_prompts(prompts), _names(sets))
    labels = "labels too" if result["labels_checked"] else "no labels: the cache is not sealed"
    emit(result, as_json, lambda r: f"{', '.join(r['checked'])}: as cached ({labels})")


def _names(listed: str | None) -> list[str] | None:
    return listed.split(",") if listed else None
