"""The command that trains the ablation with frozen encoders: frozen."""

from pathlib import Path
from typing import Any

import click

from pipeline.cli_options import PATH, emit, json_option


@click.command()
@click.option("--cache", type=PATH, required=True, help="Of a teacher that sees images alone.")
@click.option("--to", "folder", type=PATH, required=True, help="Folder of the result; new.")
@click.option("--train-captions", default="train", show_default=True, metavar="NAME")
@click.option("--test-captions", default="test", show_default=True, metavar="NAME")
@click.option("--epochs", type=int, help="Over all captions.  [default: 20]")
@click.option("--batch-size", type=int, help="Captions of a step.  [default: 512]")
@click.option("--learning-rate", type=float, help="Of AdamW, at first.  [default: 0.001]")
@click.option("--seed", type=int, help="[default: 0]")
@click.option("--width", type=int, help="Of the space of images and texts.  [default: 256]")
@json_option
def frozen(
    cache: Path,
    folder: Path,
    train_captions: str,
    test_captions: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Train an ablation, not the document's model: both encoders stay frozen.

    A small shared part learns retrieval from the cache alone, on the CPU: images as the cached
    teacher sees them, captions as `captions add --text-encoder` embedded them. No image, no shard
    and no encoder is loaded. The document trains its encoders; this shows what that is worth.
    """
    from pipeline.frozen.options import FrozenOptions

    try:
        spec = FrozenOptions(
            **{name: value for name, value in options.items() if value is not None}
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    from pipeline.frozen.ablation import run_frozen
    from pipeline.frozen.scores import retrieval_table

    told = run_frozen(
        cache, folder, spec, train_captions=train_captions, test_captions=test_captions
    )
    emit({"folder": str(folder), **told}, as_json, lambda r: retrieval_table(r["scores"]))
