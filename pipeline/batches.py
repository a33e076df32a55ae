"""Joins shards and cache: batches of views with their targets, in a planned order.

The order of an epoch is a pure function of (seed, epoch); a sample is read at the byte offset that
the cache recorded, checked against the recorded digest, and replays the recorded view parameters.
Shape letters: B batch, G samples of a step over all ranks, M bank, N rows, P view parameters, S
side in pixels, D teacher dimension.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.cache.reader import TargetCache
from pipeline.contracts import Keys, TokenBatch
from pipeline.decode import DecodePolicy
from pipeline.errors import BeamclipError, CacheMismatchError
from pipeline.options import differences, to_mapping
from pipeline.order import Order
from pipeline.photometry import apply_photometry
from pipeline.ranks import ALONE, Ranks
from pipeline.rows import RowReader, match_shards
from pipeline.schedule import Schedule
from pipeline.shardfiles import ShardFiles
from pipeline.shards import Shard
from pipeline.targets import OtherTeacher, Targets, UnitTargets, all_valid
from pipeline.tokens import TokenisedTexts

T = TypeVar("T")
_CPU = torch.device("cpu")
_AHEAD = 4  # batches that each loader makes ahead


@dataclass(frozen=True)
class ViewBatch:
    """Views before photometry, with what the cache says of them; on the CPU.

    geometry: {S: uint8 [B,3,S,S]}, the same views at each size. params_BP: float32 array.
    keys_GD: the targets of the whole step, float32, normalised; this rank's begin at `first`.
    key_rows_G: their rows, int64. norms_B: the lengths of this rank's, float32. others: the targets
    of further teachers for this rank's rows. labels_B: int64. tokens: a text for each view.
    """

    geometry: Mapping[int, Tensor]
    params_BP: np.ndarray
    keys_GD: Tensor
    key_rows_G: Tensor
    first: int
    norms_B: Tensor
    others: tuple[Tensor, ...]
    labels_B: Tensor
    tokens: TokenBatch | None = None
    finished: bool = False  # photometry is done already

    @property
    def rows_B(self) -> Tensor:
        """The rows of this batch, int64."""
        return self.key_rows_G[self.first : self.first + len(self.labels_B)]

    @property
    def target_BD(self) -> Tensor:
        """The targets of this batch, float32 [B,D], normalised."""
        return self.keys_GD[self.first : self.first + len(self.labels_B)]

    def views(self, device: torch.device, size: int | None = None) -> Tensor:
        """Return the finished views, uint8 [B,3,S,S], on `device`; size: if there is but one."""
        (only,) = self.geometry if size is None else (size,)
        views = self.geometry[only].to(device, non_blocking=True)
        return views if self.finished else apply_photometry(views, self.params_BP)

    def pin_memory(self) -> "ViewBatch":
        """Return the batch in memory that a GPU copies from by itself."""
        geometry = {size: views.pin_memory() for size, views in self.geometry.items()}
        return replace(
            self,
            geometry=geometry,
            keys_GD=self.keys_GD.pin_memory(),
            key_rows_G=self.key_rows_G.pin_memory(),
            norms_B=self.norms_B.pin_memory(),
            others=tuple(target_BD.pin_memory() for target_BD in self.others),
            labels_B=self.labels_B.pin_memory(),
            tokens=None if self.tokens is None else self.tokens.pin_memory(),
        )


class TrainingBatches:
    """The targets source of training: step number -> ViewBatch, from a cache and its shards.

    sizes: sides of the views, in pixels. others: caches of further teachers over the same shards.
    texts: captions of the rows; an epoch then has each of them once, with its image, in place of
    each row once. leave_out_N: rows that are not trained on, bool. device: where views go;
    photometry is done there, for a GPU, else as views are made. window: see `order.plan_epoch`;
    above 0, targets are read unit by unit, else a view lies in memory whole, mapped, shared by all
    processes.
    """

    def __init__(
        self,
        cache: TargetCache,
        shards: Sequence[Shard],
        *,
        sizes: Sequence[int],
        batch_size: int,
        num_views: int,
        seed: int,
        others: Sequence[TargetCache] = (),
        texts: TokenisedTexts | None = None,
        leave_out_N: np.ndarray | None = None,
        window: int = 0,
        workers: int = 0,
        ranks: Ranks = ALONE,
        device: torch.device = _CPU,
        check_digests: bool = True,
    ) -> None:
        self._others = tuple(OtherTeacher(other, cache) for other in others)
        self._reader = _reader(cache, shards, check_digests)
        self._targets: Targets = UnitTargets(cache, kept=2 * window) if window else cache
        self._texts = texts
        rows_N = all_valid(cache, self._others)
        if leave_out_N is not None:
            rows_N = rows_N[~leave_out_N[rows_N]]
        # What an epoch has once each: rows, or captions of them.
        items_N = rows_N if texts is None else np.flatnonzero(np.isin(texts.rows_K, rows_N))
        shard_N = np.asarray(cache.column("shard"))[self._rows_of(items_N)]
        self._order = Order(
            items_N, shard_N, batch_size=batch_size, seed=seed, window=window, ranks=ranks.size
        )
        self._sizes, self._num_views, self._ranks = tuple(sizes), num_views, ranks
        self._workers, self._on_cpu = workers, device.type == "cpu"
        self.steps_per_epoch = self._order.steps_per_epoch
        # Steps between asking for remote shards and reading them: about a window.
        self._ahead = max(1, self.steps_per_epoch * window // max(1, len(cache.shards)))

    def starting_at(self, step: int, stop: int) -> Iterator[ViewBatch]:
        """Yield the batches of steps `step` to `stop` - 1; epoch e sees view e mod V.

        With workers, the pixels of a batch stay until the second batch after it is asked for: their
        memory is used again.
        """
        yield from in_order(
            self._batch, range(step, stop), workers=self._workers, pin=not self._on_cpu
        )

    def keys_before(self, step: int, count: int) -> Keys:
        """Return the targets of the last `count` samples before a step, the newest last."""
        earlier = [
            (self._rows_of(items_G), epoch) for items_G, epoch in self._order.before(step, count)
        ]
        parts = [
            self._targets.targets(rows_G, epoch % self._num_views) for rows_G, epoch in earlier
        ]
        rows_M = np.concatenate([rows_G for rows_G, _ in earlier])
        return Keys(torch.from_numpy(np.concatenate(parts)), torch.from_numpy(rows_M))

    def _rows_of(self, items_G: np.ndarray) -> np.ndarray:
        return items_G if self._texts is None else self._texts.rows_K[items_G]

    def _batch(self, step: int) -> ViewBatch:
        items_G, epoch = self._order.step(step)
        rows_G, view = self._rows_of(items_G), epoch % self._num_views
        share = len(rows_G) // self._ranks.size
        first = self._ranks.rank * share
        here = slice(first, first + share)
        rows_B = rows_G[here]
        if self._reader.is_remote:
            self._reader.expect(self._rows_of(self._order.step(step + self._ahead)[0]))
        params_BP = self._targets.view_params(rows_B, view)
        geometry = self._reader.geometry(rows_B, params_BP, self._sizes)
        if self._on_cpu:  # here, where loaders share the work
            geometry = {s: apply_photometry(views, params_BP) for s, views in geometry.items()}
        return ViewBatch(
            geometry=geometry,
            params_BP=params_BP,
            keys_GD=torch.from_numpy(self._targets.targets(rows_G, view)),
            key_rows_G=torch.from_numpy(rows_G),
            first=first,
            norms_B=torch.from_numpy(self._targets.norms(rows_B, view)),
            others=tuple(torch.from_numpy(t.targets(rows_B, view)) for t in self._others),
            labels_B=self._reader.labels(rows_B),
            tokens=None if self._texts is None else self._texts.batch(items_G[here]),
            finished=self._on_cpu,
        )


def eval_batches(
    cache: TargetCache,
    shards: Sequence[Shard],
    *,
    input_px: int,
    batch_size: int = 256,
    workers: int = 0,
    rows_N: np.ndarray | None = None,
) -> Iterator[ViewBatch]:
    """Yield the eval view of the valid rows of a split, in row order; rows_N: of these alone."""
    reader = _reader(cache, shards, check_digests=True)
    valid = np.flatnonzero(cache.column("valid"))
    if rows_N is not None:
        valid = np.intersect1d(valid, rows_N)

    def batch(number: int) -> ViewBatch:
        rows_B = valid[number * batch_size : (number + 1) * batch_size]
        params_BP = cache.view_params(rows_B, 0)
        return ViewBatch(
            geometry=reader.geometry(rows_B, params_BP, (input_px,)),
            params_BP=params_BP,
            keys_GD=torch.from_numpy(cache.targets(rows_B, 0)),
            key_rows_G=torch.from_numpy(rows_B),
            first=0,
            norms_B=torch.from_numpy(cache.norms(rows_B, 0)),
            others=(),
            labels_B=reader.labels(rows_B),
        )

    steps = range(-(-len(valid) // batch_size))
    yield from in_order(batch, steps, workers=workers)


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


class _Planned(Dataset[T | Exception]):
    """A loader's view of the plan: step -> batch, or the user's error that it met.

    Errors are handed over as values: a loader would wrap a worker's in the text of its traceback.
    """

    def __init__(self, batch: Callable[[int], T], steps: range) -> None:
        self._batch, self._steps = batch, steps

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, place: int) -> T | Exception:
        try:
            return self._batch(self._steps[place])
        except (BeamclipError, OSError) as error:
            return error


def in_order(
    batch: Callable[[int], T], steps: range, *, workers: int, pin: bool = False
) -> Iterator[T]:
    """Yield the batch of each step in order, made here or by worker processes."""
    loader: DataLoader[T | Exception] = DataLoader(
        _Planned(batch, steps),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=_AHEAD if workers else None,
        collate_fn=None,
        multiprocessing_context="fork" if workers else None,
        generator=torch.Generator(),  # its own: by default each pass draws from the global one
    )
    for item in loader:
        if isinstance(item, Exception):
            raise item
        yield item


def _reader(cache: TargetCache, shards: Sequence[Shard], check_digests: bool) -> RowReader:
    files = ShardFiles(match_shards(cache, shards))
    return RowReader(cache, files, check_digests=check_digests, ahead=_AHEAD)
