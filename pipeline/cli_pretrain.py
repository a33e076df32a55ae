"""The command that pretrains a backbone on shards: pretrain."""

from pathlib import Path
from typing import Any

import click

from pipeline.cli_options import PATH, device_option, emit, json_option, shards_option


@click.command()
@shards_option
@click.option("--model", default="rn18", show_default=True, help="rn18, rn50 or any timm name.")
@click.option("--to", "folder", type=PATH, required=True, help="Folder for the weights.")
@click.option("--epochs", default=100, show_default=True, type=click.IntRange(1))
@click.option("--batch-size", default=256, show_default=True, type=click.IntRange(2))
@click.option("--input-px", default=224, show_default=True, type=click.IntRange(1))
@click.option(
    "--stem",
    default="imagenet",
    show_default=True,
    type=click.Choice(["imagenet", "small"]),
    help="small: stride 1, no max-pool.",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    help="[default: 0.06 per 128 images of a batch]",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--workers", default=0, show_default=True, type=click.IntRange(0), help="Loaders.")
@device_option
@json_option
def pretrain(
    shards: tuple[str, ...],
    folder: Path,
    workers: int,
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Pretrain a backbone by SimCLR on the images of shards, for student.init. No teacher.

    Run it again after a crash: it goes on after the last whole epoch.
    """
    from pipeline.options import parse
    from pipeline.pretrain import PretrainOptions
    from pipeline.pretrain import pretrain as run
    from pipeline.shards import find_shards

    spec = parse(PretrainOptions, options, where="beamclip pretrain")
    report = run(find_shards(shards), folder, spec, workers=workers, device=device)
    emit(
        {"folder": str(folder), **report},
        as_json,
        lambda r: (
            f"{spec.model} pretrained in {folder}: loss {r['loss']:.4f}; start students from "
            f"it by --set student.init={folder}"
        ),
    )
