"""The commands that write datasets as shards: data NAME, data folder."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.cli_options import PATH, emit, json_option

if TYPE_CHECKING:
    from pipeline.datasets.known import Known
    from pipeline.datasets.publish import Written

_Command = TypeVar("_Command", bound=Callable[..., Any])
_out = click.option("--out", type=PATH, required=True, help="Folder for the shards; new.")
_max_px = click.option(
    "--max-px",
    type=click.IntRange(1),
    help="Re-encode larger images to this shorter side.  [default: bytes as they are]",
)


def _per_shard(default: int) -> Callable[[_Command], _Command]:
    kind = click.IntRange(1)
    return click.option("--per-shard", default=default, show_default=True, type=kind)


class _Datasets(click.Group):
    """Makes the commands of known datasets when they are asked for: their rooms are many."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        _add_known(self)
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands:
            _add_known(self)
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Datasets)
def data() -> None:
    """Write datasets as WebDataset shards."""


@data.command("folder")
@click.argument("source", type=PATH)
@_out
@_per_shard(1000)
@click.option("--holdout", default=0.0, show_default=True, help="Share of images for test.")
@_max_px
@json_option
def data_folder(
    source: Path, out: Path, per_shard: int, holdout: float, max_px: int | None, as_json: bool
) -> None:
    """Any folder of images; class sub-folders and train/val/test folders are understood."""
    from pipeline.datasets.folder import image_folder
    from pipeline.datasets.publish import write_dataset

    dataset = image_folder(source, holdout=holdout)
    _print(write_dataset(dataset, out, per_shard=per_shard, max_px=max_px), out, as_json)


def _add_known(group: click.Group) -> None:
    from pipeline.datasets.known import DATASETS

    for name in DATASETS.keys() - group.commands.keys():
        _add(name, DATASETS[name])


# Of every known dataset, from the last shown to the first.
_OF_EVERY = (
    json_option,
    click.option("--caption-seed", type=click.IntRange(0), help="Which captions.  [default: 0]"),
    click.option(
        "--captions",
        type=click.IntRange(1),
        metavar="K",
        help="Of a labelled dataset: write K captions of its class for each image.",
    ),
    click.option("--val", default=0.0, help="Share of train that becomes the split val."),
    _max_px,
    click.option(
        "--from",
        "source",
        type=PATH,
        help="Folder with the official files.  [default: download, if that can be done]",
    ),
)


def _add(name: str, known: "Known") -> None:
    """Make the command of a known dataset."""

    def command(
        out: Path,
        source: Path | None,
        per_shard: int,
        max_px: int | None,
        val: float,
        captions: int | None,
        caption_seed: int | None,
        as_json: bool,
        **options: Any,
    ) -> None:
        if caption_seed is not None and captions is None:
            raise click.UsageError("--caption-seed draws captions: give --captions K")
        from pipeline.datasets.known import write_known

        written = write_known(
            name,
            out,
            source=source,
            per_shard=per_shard,
            max_px=max_px,
            val=val,
            captions=captions or 0,
            caption_seed=caption_seed or 0,
            **options,
        )
        _print(written, out, as_json)

    for option, (default, words) in (known.options or {}).items():
        flag = f"--{option}".replace("_", "-")
        names = f"{flag}/--no-{flag[2:]}" if isinstance(default, bool) else flag
        command = click.option(names, default=default, show_default=True, help=words)(command)
    for decorate in (
        *_OF_EVERY,
        _per_shard(known.per_shard),
        _out,
        data.command(name, help=known.about, short_help=known.about),
    ):
        command = decorate(command)


def _print(written: "Written", out: Path, as_json: bool) -> None:
    result = {
        "shards": [str(path) for path in written.shards],
        "samples": written.samples,
        "left_out": written.left_out,
    }
    counts = ", ".join(f"{count:,} {split}" for split, count in written.samples.items())
    lines = [f"{len(written.shards)} shards in {out}: {counts}"]
    lines += [f"  left out: {count:,} ({reason})" for reason, count in written.left_out.items()]
    emit(result, as_json, lambda _: "\n".join(lines))
