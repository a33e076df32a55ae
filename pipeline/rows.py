"""Reads rows of a cache's split from their shards: images by offset, checked, rendered as recorded.

Shape letters: B batch, S side of a view in pixels.
"""

import os
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from pipeline.cache.reader import TargetCache
from pipeline.decode import DecodePolicy, SourceImage
from pipeline.errors import CacheMismatchError, SampleError, ShardError
from pipeline.schedule import ViewParams
from pipeline.shardfiles import ShardFiles
from pipeline.shards import Shard, content_digest
from pipeline.views import blank_views, render_geometry

_COLUMNS = ("shard", "offset", "bytes", "digest", "label")


class RowReader:
    """The images and labels of one split; `files` are the cache's shards, in its order.

    check_digests: hold every image against the digest that the cache recorded; what it matches, the
    cache has seen whole, so that rows below a crop need not be decoded. ahead: how many
    batches a loader's process makes before the first is taken; in such a process, memory of views
    is used again when that many and two more have been made.
    """

    def __init__(
        self, cache: TargetCache, files: ShardFiles, *, check_digests: bool = True, ahead: int = 0
    ) -> None:
        self._cache, self._files, self._check_digests = cache, files, check_digests
        self._memory = _Memory(ahead + 2)
        self._policy = DecodePolicy(**cache.manifest["decode"])
        self._columns = {name: cache.column(name) for name in _COLUMNS}

    @property
    def is_remote(self) -> bool:
        """Whether some shard is no file, and is brought near before it is read."""
        return self._files.any_remote

    def expect(self, rows_B: np.ndarray) -> None:
        """Begin to bring the shards of rows that will be read, where they are no files."""
        self._files.expect(np.unique(self._columns["shard"][rows_B]).tolist())

    def labels(self, rows_B: np.ndarray) -> Tensor:
        """Return class numbers, int64 [B], -1 where unknown."""
        return torch.from_numpy(np.array(self._columns["label"][rows_B]))

    def geometry(
        self, rows_B: np.ndarray, params_BP: np.ndarray, sizes: Sequence[int]
    ) -> dict[int, Tensor]:
        """Render one view of each row at every size: {S: uint8 [B,3,S,S]}, before photometry.

        Each image is read once, and decoded once for each scale that its sizes need. Raises
        ShardError if a shard is not what the cache was made from.
        """
        views = {size: self._memory.blank(len(rows_B), size) for size in sizes}
        for place, (row, params) in enumerate(zip(rows_B, params_BP.tolist(), strict=True)):
            try:
                image = SourceImage(
                    self._encoded(row), self._policy, seen_whole=self._check_digests
                )
                for size in sizes:
                    out = views[size][place : place + 1]
                    render_geometry(image, [ViewParams(*params)], size, out=out)
            except SampleError as error:
                raise ShardError(
                    f"{self._where(row)}: {error}; the cache had seen it whole"
                ) from None
        return views

    def _encoded(self, row: int) -> bytes:
        column = self._columns
        size = int(column["bytes"][row])
        file = self._files.descriptor(int(column["shard"][row]))
        encoded = os.pread(file, size, int(column["offset"][row]))
        short = len(encoded) != size
        if short or (self._check_digests and content_digest(encoded) != int(column["digest"][row])):
            raise ShardError(
                f"{self._where(row)} is not the image that the cache was made from: put the shard "
                "back, or make another cache"
            )
        return encoded

    def _where(self, row: int) -> str:
        shard = int(self._columns["shard"][row])
        return f"{self._files.name(shard)}: sample {row - self._cache.shards[shard].first}"


def match_shards(cache: TargetCache, shards: Sequence[Shard]) -> list[Shard]:
    """Return the shard for each of the cache's; raises CacheMismatchError with what differs."""
    given = {shard.name: shard for shard in shards if shard.split == cache.split}
    changed: list[tuple[str, object, object]] = []
    for shard in cache.shards:
        found = given.get(shard.name)
        size: object = "(not given)" if found is None else found.size_bytes
        if size != shard.size_bytes:
            changed.append((f"{cache.split}-{shard.name} bytes", shard.size_bytes, size))
    if changed:
        raise CacheMismatchError(
            f"{cache.path} was made from other shards; point --shards to the ones it was made "
            "from:",
            changed,
        )
    return [given[shard.name] for shard in cache.shards]


class _Memory:
    """Where views are put: in a loader's process, memory that it shares with its parent.

    Otherwise each batch would be copied once more on its way. `count` pieces of each shape are used
    in turn, since new memory costs a loader about a tenth of its time.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pieces: dict[tuple[int, int], deque[Tensor]] = {}

    def blank(self, views: int, size: int) -> Tensor:
        """Return uint8 [views,3,S,S] of any content."""
        if get_worker_info() is None:
            return blank_views(views, size)
        pieces = self._pieces.setdefault((views, size), deque())
        if len(pieces) < self._count:
            pieces.append(_shared(views, size))
        else:
            pieces.rotate(-1)
        return pieces[-1]


def _shared(count: int, size: int) -> Tensor:
    shared = torch.UntypedStorage._new_shared(count * size * size * 3)  # type: ignore[no-untyped-call]
    flat = torch.empty(0, dtype=torch.uint8).set_(shared)
    return flat.view(count, size, size, 3).permute(0, 3, 1, 2)
