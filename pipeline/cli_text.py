"""The command that makes a text encoder where none can be downloaded: text-encoder tiny."""

from pathlib import Path

import click

from pipeline.cli_options import PATH, emit, json_option, shards_option


@click.group("text-encoder")
def text_encoder() -> None:
    """Make a text encoder where none can be downloaded."""


@text_encoder.command("tiny")
@shards_option
@click.option("--to", "folder", type=PATH, required=True, help="Folder of the model; new.")
@click.option("--epochs", default=3, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--width", default=64, show_default=True, type=click.IntRange(32))
@click.option("--layers", default=2, show_default=True, type=click.IntRange(1))
@json_option
def text_encoder_tiny(
    shards: tuple[str, ...],
    folder: Path,
    epochs: int,
    seed: int,
    width: int,
    layers: int,
    as_json: bool,
) -> None:
    """Train a small BERT on the captions of train shards and save it as transformers does.

    They are in .json (`captions` or `caption`) or .txt.
    """
    from pipeline.shards import find_shards
    from pipeline.text_tiny import TextTinyOptions, train_tiny_text_encoder

    try:
        spec = TextTinyOptions(epochs=epochs, seed=seed, width=width, layers=layers)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    result = train_tiny_text_encoder(find_shards(shards), folder, spec)
    emit(
        {"folder": str(folder), **result},
        as_json,
        lambda r: (
            f"text encoder in {folder}: {r['captions']:,} captions, "
            f"{r['vocabulary']:,} tokens, loss {r['loss']:.3f}"
        ),
    )
