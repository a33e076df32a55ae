"""Reads rows of a cache's split from their shards: images by offset, checked, rendered as recorded.

Shape letters: B batch, S side of a view in pixels.
"""

import os
import resource
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from pipeline.cache.reader import TargetCache
from pipeline.decode import DecodePolicy, SourceImage
from pipeline.errors import CacheMismatchError, SampleError, ShardError
from pipeline.schedule import ViewParams
from pipeline.shards import Shard, content_digest
from pipeline.views import blank_views, render_geometry

_COLUMNS = ("shard", "offset", "bytes", "digest", "label")


class RowReader:
    """The images and labels of one split; `paths` are those of the cache's shards, in its order.

    check_digests: hold every image against the digest that the cache recorded.
    """

    def __init__(
        self, cache: TargetCache, paths: Sequence[str], *, check_digests: bool = True
    ) -> None:
        self._files: dict[int, int] = {}
        self._cache, self._paths, self._check_digests = cache, paths, check_digests
        self._policy = DecodePolicy(**cache.manifest["decode"])
        self._columns = {name: cache.column(name) for name in _COLUMNS}

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
        views = {size: _blank(len(rows_B), size) for size in sizes}
        for place, (row, params) in enumerate(zip(rows_B, params_BP.tolist(), strict=True)):
            try:
                image = SourceImage(self._encoded(row), self._policy)
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
        encoded = os.pread(self._file(int(column["shard"][row])), size, int(column["offset"][row]))
        short = len(encoded) != size
        if short or (self._check_digests and content_digest(encoded) != int(column["digest"][row])):
            raise ShardError(
                f"{self._where(row)} is not the image that the cache was made from: put the shard "
                "back, or make another cache"
            )
        return encoded

    def _file(self, shard: int) -> int:
        """Return the descriptor of a shard; with too many open, the one opened first makes room."""
        if shard not in self._files:
            # A random order visits every shard; a process may often open no more than 1,024 files.
            most = max(8, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
            if len(self._files) >= most:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[shard] = os.open(self._paths[shard], os.O_RDONLY)
        return self._files[shard]

    def _where(self, row: int) -> str:
        shard = int(self._columns["shard"][row])
        return f"{self._paths[shard]}: sample {row - self._cache.shards[shard].first}"

    def __getstate__(self) -> Mapping[str, Any]:
        return {**self.__dict__, "_files": {}}

    def __del__(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)


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


def _blank(count: int, size: int) -> Tensor:
    """Return views of any content, in a loader's process in memory that it shares with its parent.

    Otherwise each batch would be copied once more on its way.
    """
    if get_worker_info() is None:
        return blank_views(count, size)
    shared = torch.UntypedStorage._new_shared(count * size * size * 3)  # type: ignore[no-untyped-call]
    flat = torch.empty(0, dtype=torch.uint8).set_(shared)
    return flat.view(count, size, size, 3).permute(0, 3, 1, 2)
