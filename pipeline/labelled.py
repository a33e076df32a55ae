"""Reads labelled shards that no cache was made from: what lies in them, and its evaluation views.

Shape letters: N rows of a split, B batch, S side of a view in pixels.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from pipeline import runtime
from pipeline.batches import in_order
from pipeline.decode import DecodePolicy, SourceImage
from pipeline.errors import ProbeError, SampleError, ShardError
from pipeline.schedule import EvalSchedule
from pipeline.shardfiles import ShardFiles
from pipeline.shards import Sample, Shard, content_digest, read_samples
from pipeline.views import render_centre

_COLUMNS = {
    "shard": np.int32,
    "offset": np.int64,
    "bytes": np.int64,
    "digest": np.uint64,
    "label": np.int64,
}


@dataclass(frozen=True)
class EvalView:
    """How an image becomes an encoder's input: resized to `resized_px`, its centre of `size` cut.

    size: side S of the input. resized_px: by default `size`, so that nothing is cut of the shorter
    side.
    """

    size: int
    schedule: EvalSchedule
    decode: DecodePolicy
    resized_px: int | None = None

    def render(self, encoded: bytes) -> Tensor:
        """Return the view of an encoded image, uint8 [3,S,S]; raises SampleError."""
        image = SourceImage(encoded, self.decode)
        params = self.schedule.params("", 0, image.width, image.height)
        return render_centre(image, params, self.size, resized_px=self.resized_px)


@dataclass(frozen=True)
class LabelledSplit:
    """The rows of one split, in the order of its shards.

    sha256: of each shard's bytes. columns, [N] each: shard (its place), offset and bytes of the
    encoded image, its digest, label (-1 where unknown). faults: rows without a usable image or
    label, and why.
    """

    split: str
    shards: tuple[Shard, ...]
    sha256: tuple[str, ...]
    columns: Mapping[str, np.ndarray]
    faults: Mapping[int, str]

    def __len__(self) -> int:
        return len(self.columns["label"])

    @property
    def usable_N(self) -> np.ndarray:
        """The rows that have an image, int64; whether it decodes is not known yet."""
        return np.setdiff1d(np.arange(len(self)), np.fromiter(self.faults, np.int64))

    @property
    def digests_N(self) -> np.ndarray:
        """The digests of the usable rows' encoded images, uint64."""
        return np.asarray(self.columns["digest"][self.usable_N])


@dataclass(frozen=True)
class RenderedRows:
    """The views of some rows, uint8 [B,3,S,S]; of a row that cannot be rendered, why."""

    views_B3SS: Tensor
    rows_B: np.ndarray
    faults: Mapping[int, str]


def read_splits(shards: Sequence[Shard], *, dataset: str) -> dict[str, LabelledSplit]:
    """Read every shard once; return its rows by split, `test` among them.

    Raises ProbeError if there is no test split, or a split without rows or without labels;
    ShardError, OSError.
    """
    by_split: dict[str, list[Shard]] = {}
    for shard in shards:
        by_split.setdefault(shard.split, []).append(shard)
    if "test" not in by_split:
        raise ProbeError(
            f"{dataset}: no test shards among {', '.join(by_split)}: name files test-*.tar, or "
            "write test=PATTERN"
        )
    with runtime.progress("reading shards", sum(s.size_bytes for s in shards), None) as advance:
        found = {name: _read_split(name, own, advance) for name, own in by_split.items()}
    for split in found.values():
        _check_labelled(split, dataset)
    return found


def _check_labelled(split: LabelledSplit, dataset: str) -> None:
    if not len(split):
        raise ProbeError(f"{dataset}: its {split.split} shards hold no sample: give others")
    if not (split.columns["label"][split.usable_N] >= 0).any():
        reason = f" ({next(iter(split.faults.values()))})" if split.faults else ""
        raise ProbeError(
            f"{dataset}: no sample of its {len(split)} {split.split} samples has an image and a "
            f"label (.cls){reason}: probes need labelled shards"
        )


def _read_split(name: str, shards: Sequence[Shard], advance: runtime.Advance) -> LabelledSplit:
    rows: list[tuple[int, int, int, int, int]] = []
    hashes: list[str] = []
    faults: dict[int, str] = {}
    for place, shard in enumerate(shards):
        digest = sha256()
        for sample in read_samples(shard, digest):
            try:
                rows.append((place, *_located(sample)))
            except SampleError as error:
                faults[len(rows)] = f"{shard}: {sample.key[:80]}: {error}"
                rows.append((place, 0, 0, 0, -1))
        hashes.append(digest.hexdigest())
        advance(shard.size_bytes)
    columns = {
        column: np.array([row[i] for row in rows], dtype)
        for i, (column, dtype) in enumerate(_COLUMNS.items())
    }
    return LabelledSplit(name, tuple(shards), tuple(hashes), columns, faults)


def _located(sample: Sample) -> tuple[int, int, int, int]:
    """Return offset, size and digest of a sample's image, and its label; raises SampleError."""
    image = sample.image()
    return image.offset, image.size_bytes, content_digest(image.content), sample.label()


def rendered_rows(
    split: LabelledSplit, view: EvalView, *, batch_size: int = 256, workers: int = 0
) -> Iterator[RenderedRows]:
    """Yield the views of the usable rows, in row order; raises ShardError if a shard has changed.

    workers: processes that render, 0 for this one.
    """
    files, usable_N = ShardFiles(split.shards), split.usable_N

    def batch(number: int) -> RenderedRows:
        views, rows, faults = [], [], {}
        for row in usable_N[number * batch_size : (number + 1) * batch_size].tolist():
            try:
                views.append(view.render(_encoded(split, files, row)))
                rows.append(row)
            except SampleError as error:
                faults[row] = f"{files.name(int(split.columns['shard'][row]))}: {error}"
        blank = torch.empty((0, 3, view.size, view.size), dtype=torch.uint8)
        views_B3SS = torch.stack(views) if views else blank
        return RenderedRows(views_B3SS, np.array(rows, np.int64), faults)

    yield from in_order(batch, range(-(-len(usable_N) // batch_size)), workers=workers)


def _encoded(split: LabelledSplit, files: ShardFiles, row: int) -> bytes:
    shard, offset, size, digest, _ = (int(split.columns[name][row]) for name in _COLUMNS)
    encoded = os.pread(files.descriptor(shard), size, offset)
    if content_digest(encoded) != digest:
        raise ShardError(f"{files.name(shard)} changed while it was probed: run again")
    return encoded
