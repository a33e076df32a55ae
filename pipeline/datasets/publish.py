"""Writes a dataset as shards: all of it, in a folder that appears when it is done."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

from pipeline import durable, runtime
from pipeline.datasets.pixels import shrunk
from pipeline.datasets.sets import Dataset, Pairs, Split
from pipeline.errors import DataError
from pipeline.shards import IMAGE_EXTENSIONS, write_shards


@dataclass
class Written:
    """What was written: shards in order, samples by split, and what was left out, by reason."""

    shards: list[Path] = field(default_factory=list)
    samples: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)


def write_dataset(
    dataset: Dataset, out: Path, *, per_shard: int, max_px: int | None = None, val: float = 0.0
) -> Written:
    """Write a dataset's splits as shards in `out`, which appears when all is written.

    max_px: the shorter side that larger images are re-encoded to; by default bytes stay as they
    are. val: the share of train, chosen by a hash of the keys, that becomes the split val. Raises
    DataError if a split would be empty, or if `out` holds anything.
    """
    if not 0 <= val < 1:
        raise DataError(f"--val is a share of train, 0 to below 1, not {val}")
    written = Written()
    total = sum(split.size or 0 for split in dataset.splits) or None
    with published(out) as folder, runtime.progress("writing shards", total, "images") as advance:
        for split in _with_val(dataset.splits, val):
            counted = _counted(split, written, max_px, advance)
            paths = write_shards(counted, folder, split.prefix, per_shard=per_shard)
            if not paths:
                raise DataError(f"split {split.prefix} of the dataset has no sample to write")
            written.shards += [out / path.name for path in paths]
        written.left_out = dict(dataset.left_out or {})
        for name, content in _files(dataset).items():
            (folder / name).write_bytes(content)
    return written


@contextlib.contextmanager
def published(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `out` at the end; refuse to mix with what is there."""
    check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / f".{out.name}.{uuid.uuid4().hex}.tmp"
    temporary.mkdir()
    try:
        yield temporary
        if out.is_dir():
            out.rmdir()
        durable.publish_folder(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_free(out: Path) -> None:
    """Raise DataError if a folder for shards holds anything."""
    if found := sorted(out.glob("*.tar")):
        raise DataError(
            f"{out} already holds {len(found)} shards ({found[0].name}, ...): remove it"
        )
    if out.is_dir() and any(out.iterdir()):
        raise DataError(f"{out} is not empty: name a new folder")


def _files(dataset: Dataset) -> dict[str, bytes]:
    files = dict(dataset.files or {})
    if dataset.classes:
        files["classes.txt"] = os.fsencode("\n".join(dataset.classes) + "\n")
    return files


def _with_val(splits: tuple[Split, ...], share: float) -> Iterator[Split]:
    """Yield the splits; of train, a share becomes val, by a hash of the key."""
    if share and any(split.name == "val" for split in splits):
        raise DataError("the dataset has a val split of its own: --val has no place")
    cut = int(share * 2**64)
    for split in splits:
        if split.name != "train" or split.part or not share:
            yield split
            continue
        yield replace(split, samples=_chosen(split, cut, below=False))
        yield replace(split, name="val", samples=_chosen(split, cut, below=True))


def _chosen(split: Split, cut: int, *, below: bool):  # type: ignore[no-untyped-def]
    def samples() -> Pairs:
        return (pair for pair in split.samples() if (key_hash(pair[0]) < cut) == below)

    return samples


def key_hash(key: str) -> int:
    """Return 64 bits that decide to which split a key goes."""
    digest = blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _counted(split: Split, written: Written, max_px: int | None, advance: runtime.Advance) -> Pairs:
    written.samples.setdefault(split.prefix, 0)
    for key, members in split.samples():
        if max_px is not None:
            members = {
                name: shrunk(content, max_px) if name in IMAGE_EXTENSIONS else content
                for name, content in members.items()
            }
        yield key, members
        written.samples[split.prefix] += 1
        advance(1)
