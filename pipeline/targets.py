"""Looks up what a cache says of rows: whole views mapped into memory, or unit by unit.

Shape letters: B rows asked for, n rows of a shard, D teacher dimension, P view parameters.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pipeline.cache.reader import TargetCache, normalised
from pipeline.errors import CacheMismatchError
from pipeline.options import differences, to_mapping


class Targets(Protocol):
    """What a cache says of rows of one split in one view."""

    def targets(self, rows_B: np.ndarray, view: int) -> np.ndarray:
        """Return targets, float32 [B,D], normalised."""

    def norms(self, rows_B: np.ndarray, view: int) -> np.ndarray:
        """Return the lengths that targets had before they were normalised, float32 [B]."""

    def view_params(self, rows_B: np.ndarray, view: int) -> np.ndarray:
        """Return what decided the views, float32 [B,P]."""


class UnitTargets:
    """A cache read shard by shard, each view of a shard whole; some of them are kept.

    For an order that reads few shards at a time, of views too large to lie in memory whole.
    """

    def __init__(self, cache: TargetCache, *, kept: int) -> None:
        self._cache, self._kept = cache, 3 * kept  # of targets, norms and params
        self._firsts = np.array([shard.first for shard in cache.shards])
        self._arrays: OrderedDict[tuple[str, int, int], np.ndarray] = OrderedDict()

    def targets(self, rows_B: np.ndarray, view: int) -> np.ndarray:
        """Return targets, float32 [B,D], normalised."""
        return normalised(self._gather("targets", rows_B, view))

    def norms(self, rows_B: np.ndarray, view: int) -> np.ndarray:
        """Return the lengths that targets had before they were normalised, float32 [B]."""
        return self._gather("norms", rows_B, view)

    def view_params(self, rows_B: np.ndarray, view: int) -> np.ndarray:
        """Return what decided the views, float32 [B,P]."""
        return self._gather("params", rows_B, view)

    def _gather(self, array: str, rows_B: np.ndarray, view: int) -> np.ndarray:
        shard_B = np.searchsorted(self._firsts, rows_B, side="right") - 1
        found: np.ndarray | None = None
        for shard in np.unique(shard_B):
            values_n = self._shard(array, int(shard), view)
            if found is None:
                found = np.empty((len(rows_B), *values_n.shape[1:]), values_n.dtype)
            here_B = shard_B == shard
            found[here_B] = values_n[rows_B[here_B] - self._firsts[shard]]
        assert found is not None, "no rows were asked for"
        return found

    def _shard(self, array: str, shard: int, view: int) -> np.ndarray:
        key = (array, shard, view)
        if key not in self._arrays:
            while len(self._arrays) >= self._kept:
                self._arrays.popitem(last=False)
            self._arrays[key] = self._cache.of_shard(array, shard, view)
        self._arrays.move_to_end(key)
        return self._arrays[key]


class OtherTeacher:
    """The targets of another teacher's cache over the same shards, by the rows of the first one.

    valid_N: whether the other cache has a target for a row. Raises CacheMismatchError unless both
    caches saw the same shards under the same schedule, so that their views are the same.
    """

    def __init__(self, cache: TargetCache, first: TargetCache) -> None:
        self._targets: Targets = cache
        self._row_N = _rows_by_identity(cache, first)
        self.valid_N = np.asarray(cache.column("valid"))[self._row_N]

    def targets(self, rows_B: np.ndarray, view: int) -> np.ndarray:
        """Return targets, float32 [B,D], normalised."""
        return self._targets.targets(self._row_N[rows_B], view)


def all_valid(cache: TargetCache, others: Sequence[OtherTeacher]) -> np.ndarray:
    """Return the rows that every teacher has a target for, int64."""
    valid_N = np.array(cache.column("valid"))
    for other in others:
        valid_N &= other.valid_N
    return np.flatnonzero(valid_N)


def _rows_by_identity(cache: TargetCache, first: TargetCache) -> np.ndarray:
    """Return the row in `cache` of each row of `first`: same shard by content, same ordinal."""
    theirs = {shard.name: shard for shard in cache.shards}
    changed = differences(
        {"schedule": to_mapping(first.schedule), "decode": first.manifest["decode"]},
        {"schedule": to_mapping(cache.schedule), "decode": cache.manifest["decode"]},
    )
    if cache.num_views < first.num_views:
        changed.append(("views", first.num_views, cache.num_views))
    rows = []
    for shard in first.shards:
        found = theirs.get(shard.name)
        sha256 = "(absent)" if found is None else found.sha256
        if found is None or sha256 != shard.sha256:
            changed.append((f"{first.split}-{shard.name} sha256", shard.sha256, sha256))
            continue
        rows.append(found.first + np.arange(shard.rows))
    if changed:
        raise CacheMismatchError(
            f"{cache.path} does not show the views of {first.path}: make both from the same "
            "shards, schedule and decode policy:",
            changed,
        )
    return np.concatenate(rows) if rows else np.empty(0, np.int64)
