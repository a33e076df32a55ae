"""The commands for a cache's captions: captions add, remove, list, show."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli_options import (
    PATH,
    device_option,
    emit,
    json_option,
    shards_option,
    teacher_option,
)

if TYPE_CHECKING:
    from pipeline.frozen.texts import TextFeatureOptions

_cache_argument = click.argument("cache", type=PATH)


@click.group()
def captions() -> None:
    """Add captions of images to a cache, for retrieval. No image is embedded."""


@captions.command("add")
@_cache_argument
@shards_option
@click.option("--split", default="test", show_default=True, help="Whose captions.")
@click.option("--name", help="Of the set.  [default: the split's]")
@teacher_option
@click.option(
    "--text-encoder",
    metavar="FOLDER|NAME",
    help="Embeds them, for `beamclip frozen`, where the teacher reads no text.",
)
@click.option("--text-layers", type=int, help="Its first so many.  [default: all]")
@click.option(
    "--pooling",
    type=click.Choice(["mean", "cls"]),
    help="What of its last layer stands for a text: all places, or the first.  [default: mean]",
)
@click.option("--max-tokens", type=int, help="Of a text, marks included.  [default: 64]")
@device_option
@json_option
def captions_add(
    cache: Path,
    shards: tuple[str, ...],
    split: str,
    name: str | None,
    teacher: str | None,
    text_encoder: str | None,
    text_layers: int | None,
    pooling: str | None,
    max_tokens: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Embed the captions beside a split's images with the text tower of the cache's teacher.

    They are in .json (`captions` or `caption`) or .txt. The seal stays valid. A teacher that reads
    no text leaves them as texts, unless --text-encoder embeds them: in a space of its own, so the
    teacher still retrieves nothing by them.
    """
    encoder = _encoder(text_encoder, layers=text_layers, pooling=pooling, max_tokens=max_tokens)
    from pipeline.caption_sets import add_captions, show_captions
    from pipeline.shards import find_shards

    found = find_shards(shards)
    added = add_captions(
        cache, found, split=split, name=name, device=device, teacher=teacher, encoder=encoder
    )
    summary = show_captions(cache, split if name is None else name)
    emit(
        {"cache": str(cache), "added": added, **summary.as_mapping()},
        as_json,
        lambda _: f"{'added' if added else 'there'}: {summary.line()}",
    )


def _encoder(text: str | None, **given: Any) -> "TextFeatureOptions | None":
    """Return how texts are embedded; raises UsageError for wrong options, or without an encoder."""
    given = {name: value for name, value in given.items() if value is not None}
    if text is None:
        if given:
            raise click.UsageError(
                "--text-layers, --pooling and --max-tokens say how --text-encoder embeds: name it"
            )
        return None
    from pipeline.frozen.texts import TextFeatureOptions

    try:
        return TextFeatureOptions(text=text, **given)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


@captions.command("remove")
@_cache_argument
@click.argument("name")
@json_option
def captions_remove(cache: Path, name: str, as_json: bool) -> None:
    """Take a set of captions out of a cache; all else stays as it is."""
    from pipeline.caption_sets import remove_captions

    remove_captions(cache, name)
    emit({"cache": str(cache), "removed": name}, as_json, lambda _: f"{name}: removed")


@captions.command("list")
@_cache_argument
@json_option
def captions_list(cache: Path, as_json: bool) -> None:
    """List the sets of captions of a cache."""
    from pipeline.caption_sets import list_captions

    found = list_captions(cache)
    emit(
        {"captions": [item.as_mapping() for item in found]},
        as_json,
        lambda _: "\n".join(item.line() for item in found) or "no captions",
    )


@captions.command("show")
@_cache_argument
@click.argument("name")
@json_option
def captions_show(cache: Path, name: str, as_json: bool) -> None:
    """Show a set of captions: how many, of what, tokens, cuts, what was left out."""
    from pipeline.caption_sets import show_captions

    found = show_captions(cache, name)
    emit(found.as_mapping(), as_json, lambda _: found.text())
