"""Joins shards and cache: batches of views with their targets, in a planned order.

The order of an epoch is a pure function of (seed, epoch); a sample is read at the byte offset that
the cache recorded, checked against the recorded digest, and replays the recorded view parameters.
Shape letters: B batch, N rows, P view parameters, S side in pixels, D teacher dimension.
"""

import os
import resource
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.cache.reader import TargetCache
from pipeline.decode import DecodePolicy, SourceImage
from pipeline.errors import (
    BeamclipError,
    CacheMismatchError,
    SampleError,
    ShardError,
    StudentError,
)
from pipeline.options import differences, to_mapping
from pipeline.photometry import apply_photometry
from pipeline.schedule import Schedule, ViewParams, philox_words
from pipeline.shards import Shard, content_digest
from pipeline.views import render_geometry


@dataclass(frozen=True)
class ViewBatch:
    """Views before photometry, with what the cache says of them; on the CPU.

    geometry_B3SS: uint8. params_BP: float32 array. target_BD: float32, normalised.
    rows_B, labels_B: int64.
    """

    geometry_B3SS: Tensor
    params_BP: np.ndarray
    target_BD: Tensor
    rows_B: Tensor
    labels_B: Tensor

    def views(self, device: torch.device) -> Tensor:
        """Return the finished views, uint8 [B,3,S,S], on `device`."""
        geometry = self.geometry_B3SS.to(device, non_blocking=True)
        return apply_photometry(geometry, self.params_BP)


def plan_epoch(num_rows: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Return the epoch's order as whole steps: int64 [steps, B], places among `num_rows`.

    What does not fill a last step is left out, another part of the rows each epoch. With fewer rows
    than a batch there is one step of all of them. Raises StudentError without any row.
    """
    if num_rows == 0:
        raise StudentError("no valid row to train on: see the skips that teacher-cache reported")
    batch = min(batch_size, num_rows)
    words = philox_words(np.array([seed, 0], np.uint64), epoch, num_rows)
    order = np.argsort(words, kind="stable")
    return order[: num_rows // batch * batch].reshape(-1, batch)


class TrainingBatches:
    """The targets source of training: step number -> ViewBatch, from a cache and its shards."""

    def __init__(
        self,
        cache: TargetCache,
        shards: Sequence[Shard],
        *,
        input_px: int,
        batch_size: int,
        num_views: int,
        seed: int,
        workers: int = 0,
    ) -> None:
        self._rows = _Rows(cache, shards, input_px)
        self._valid = np.flatnonzero(cache.column("valid"))
        self._batch_size, self._num_views, self._seed = batch_size, num_views, seed
        self._workers = workers
        self.steps_per_epoch = len(self._plan(0))

    def starting_at(self, step: int, stop: int) -> Iterator[ViewBatch]:
        """Yield the batches of steps `step` to `stop` - 1; epoch e sees view e mod V."""
        plan = _Planned(self._rows, self._step, range(step, stop))
        yield from _loader(plan, self._workers)

    def _step(self, step: int) -> tuple[np.ndarray, int]:
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._valid[self._plan(epoch)[place]], epoch % self._num_views

    def _plan(self, epoch: int) -> np.ndarray:
        return _cached_plan(len(self._valid), self._batch_size, self._seed, epoch)


def eval_batches(
    cache: TargetCache,
    shards: Sequence[Shard],
    *,
    input_px: int,
    batch_size: int = 256,
    workers: int = 0,
) -> Iterator[ViewBatch]:
    """Yield the eval view of every valid row of a split, in row order."""
    rows = _Rows(cache, shards, input_px)
    valid = np.flatnonzero(cache.column("valid"))
    steps = range(-(-len(valid) // batch_size))

    def step(number: int) -> tuple[np.ndarray, int]:
        return valid[number * batch_size : (number + 1) * batch_size], 0

    yield from _loader(_Planned(rows, step, steps), workers)


def check_cache(
    cache: TargetCache, schedule: Schedule, num_views: int, decode_policy: DecodePolicy
) -> None:
    """Raise CacheMismatchError if a cache was not made with this schedule and decode policy.

    A cache may hold more views than are asked for, not fewer.
    """
    found = {"schedule": to_mapping(cache.schedule), "decode": cache.manifest["decode"]}
    wanted = {"schedule": to_mapping(schedule), "decode": to_mapping(decode_policy)}
    changed = differences(found, wanted)
    if cache.num_views < num_views:
        changed.append(("views", cache.num_views, num_views))
    if changed:
        raise CacheMismatchError(
            f"{cache.path} was not made by this recipe; train with the recipe it was made by, or "
            "make another cache:",
            changed,
        )


class _Rows:
    """Reads rows of one split: bytes by offset, pixels by recorded parameters."""

    def __init__(self, cache: TargetCache, shards: Sequence[Shard], input_px: int) -> None:
        self._files: dict[int, int] = {}
        self._cache, self._input_px = cache, input_px
        self._paths = _match_shards(cache, shards)
        self._policy = DecodePolicy(**cache.manifest["decode"])
        self._columns = {
            name: cache.column(name) for name in ("shard", "offset", "bytes", "digest", "label")
        }

    def batch(self, rows_B: np.ndarray, view: int) -> ViewBatch:
        params_BP = self._cache.view_params(rows_B, view)
        views = [self._render(row, params) for row, params in zip(rows_B, params_BP, strict=True)]
        return ViewBatch(
            geometry_B3SS=torch.stack(views).contiguous(),
            params_BP=params_BP,
            target_BD=torch.from_numpy(self._cache.targets(rows_B, view)),
            rows_B=torch.from_numpy(rows_B),
            labels_B=torch.from_numpy(np.array(self._columns["label"][rows_B])),
        )

    def _render(self, row: int, params: np.ndarray) -> Tensor:
        try:
            image = SourceImage(self._encoded(row), self._policy)
            return render_geometry(image, [ViewParams(*params.tolist())], self._input_px)[0]
        except SampleError as error:
            raise ShardError(f"{self._where(row)}: {error}; the cache had seen it whole") from None

    def _encoded(self, row: int) -> bytes:
        column = self._columns
        size = int(column["bytes"][row])
        encoded = os.pread(self._file(int(column["shard"][row])), size, int(column["offset"][row]))
        if content_digest(encoded) != int(column["digest"][row]):
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


class _Planned(Dataset[ViewBatch | Exception]):
    """A loader's view of the plan: step -> batch, or the user's error that it met.

    Errors are handed over as values: a loader would wrap a worker's in the text of its traceback.
    """

    def __init__(self, rows: _Rows, step: Any, steps: range) -> None:
        self._rows, self._step, self._steps = rows, step, steps

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, place: int) -> ViewBatch | Exception:
        try:
            return self._rows.batch(*self._step(self._steps[place]))
        except (BeamclipError, OSError) as error:
            return error


@lru_cache(maxsize=2)
def _cached_plan(num_rows: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    return plan_epoch(num_rows, batch_size, seed, epoch)


def _loader(planned: _Planned, workers: int) -> Iterator[ViewBatch]:
    """Yield the planned batches in order, made here or by worker processes."""
    loader: DataLoader[ViewBatch | Exception] = DataLoader(
        planned,
        batch_size=None,
        num_workers=workers,
        pin_memory=False,
        collate_fn=None,
        multiprocessing_context="fork" if workers else None,
        generator=torch.Generator(),  # its own: by default each pass draws from the global one
    )
    for item in loader:
        if isinstance(item, Exception):
            raise item
        yield item


def _match_shards(cache: TargetCache, shards: Sequence[Shard]) -> list[str]:
    """Return the path of each shard of the cache; raises CacheMismatchError naming what differs."""
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
    return [str(given[shard.name].path) for shard in cache.shards]
