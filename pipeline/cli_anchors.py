"""The commands for a cache's prompt sets: anchors add, remove, list, show, check."""

from pathlib import Path

import click

from pipeline.cli_options import PATH, device_option, emit, json_option, teacher_option

_cache_argument = click.argument("cache", type=PATH)
_prompts = click.option("--prompts", required=True, help="A prompt file's name, or a .yaml file.")
_sets = click.option("--sets", metavar="A,B", help="Prompt sets.  [default: all of the file]")
_descriptions = click.option(
    "--descriptions", metavar="FILE", help="YAML or JSON, {class: description}: your own."
)


@click.group()
def anchors() -> None:
    """Add prompt sets to a cache, and look at those it has. No image is embedded."""


@anchors.command("add")
@_cache_argument
@_prompts
@_sets
@_descriptions
@click.option("--sample", type=click.IntRange(1), help="A random subset of so many classes.")
@click.option("--seed", type=click.IntRange(0), help="Which subset.  [default: 0]")
@teacher_option
@device_option
@json_option
def anchors_add(
    cache: Path,
    prompts: str,
    sets: str | None,
    descriptions: str | None,
    sample: int | None,
    seed: int | None,
    teacher: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Embed prompt sets with the text tower of the cache's teacher; a seal stays valid.

    Any prompt file will do, another dataset's too: training takes a set by its name (`--set
    prompts.anchors=NAME`).
    """
    from pipeline.prompts import load_sets, sampled
    from pipeline.texts import add_anchors

    if seed is not None and sample is None:
        raise click.UsageError("--seed says which --sample; give both")
    chosen = load_sets(prompts, _names(sets), descriptions)
    if sample is not None:
        chosen = [sampled(item, sample, seed or 0) for item in chosen]
    added = add_anchors(cache, chosen, device=device, teacher=teacher)
    emit(
        {"cache": str(cache), "added": added},
        as_json,
        lambda _: "\n".join(f"{n}: {'added' if new else 'there'}" for n, new in added.items()),
    )


@anchors.command("remove")
@_cache_argument
@click.argument("name")
@json_option
def anchors_remove(cache: Path, name: str, as_json: bool) -> None:
    """Take a prompt set out of a cache; all else stays as it is."""
    from pipeline.texts import remove_anchors

    remove_anchors(cache, name)
    emit({"cache": str(cache), "removed": name}, as_json, lambda _: f"{name}: removed")


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
@click.option("--prompts", help="Hold this prompt file against the cached anchors and labels.")
@_sets
@_descriptions
@click.option("--set", "name", metavar="NAME", help="Measure this prompt set by the images.")
@click.option("--against", metavar="NAME", help="With --set: another set, the state before.")
@click.option("--split", default="train", show_default=True, help="With --set: whose images.")
@json_option
def anchors_check(
    cache: Path,
    prompts: str | None,
    sets: str | None,
    descriptions: str | None,
    name: str | None,
    against: str | None,
    split: str,
    as_json: bool,
) -> None:
    """Check anchors before training on them.

    With --prompts: that classes, texts and labels are as they were embedded. With --set: which
    labels are ambiguous, from cached targets alone; no image is read, no teacher loaded.
    """
    if (prompts is None) == (name is None):
        raise click.UsageError("give --prompts FILE or --set NAME")
    if name is not None:
        from pipeline.anchor_report import report_anchors
        from pipeline.tables import anchors_table

        report = report_anchors(cache, name, against=against, split=split)
        emit(report.as_mapping(), as_json, lambda _: anchors_table(report))
        return
    from pipeline.anchors import check_anchors
    from pipeline.prompt_file import load_prompts

    result = check_anchors(cache, load_prompts(str(prompts), descriptions), _names(sets))
    labels = "labels too" if result["labels_checked"] else "no labels: the cache is not sealed"
    emit(result, as_json, lambda r: f"{', '.join(r['checked'])}: as cached ({labels})")


def _names(listed: str | None) -> list[str] | None:
    return listed.split(",") if listed else None
