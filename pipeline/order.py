"""Decides the order of training: the rows of each step, a pure function of (seed, epoch).

The order is of all ranks together; a rank takes its part of each step. Neither workers, ranks nor
shards change it. Shape letters: N rows to train on, G samples of a step, M samples before a step.
"""

import numpy as np

from pipeline.errors import StudentError
from pipeline.schedule import philox_words

# The second word of the Philox key: what the numbers are drawn for.
_EPOCHS, _NOISE, _EARLIER, _SHARDS, _HELD_OUT = range(5)


def plan_epoch(
    num_rows: int,
    batch_size: int,
    seed: int,
    epoch: int,
    *,
    shard_N: np.ndarray | None = None,
    window: int = 0,
) -> np.ndarray:
    """Return an epoch's order as whole steps: int64 [steps, G], places among `num_rows`.

    What does not fill a last step is left out, another part of the rows each epoch. With fewer rows
    than a batch there is one step of all of them. shard_N, window: with a window above 0, whole
    shards are put in order, and rows are in order of chance within each so many shards, so that few
    shards are read at a time. Epochs before the first (below 0) are planned too, from numbers of
    their own. Raises StudentError without any row.
    """
    if num_rows == 0:
        raise StudentError("no valid row to train on: see the skips that teacher-cache reported")
    batch = min(batch_size, num_rows)
    order = np.argsort(_words(seed, _EPOCHS, epoch, num_rows), kind="stable")
    if window and shard_N is not None:
        names, place_N = np.unique(shard_N, return_inverse=True)
        turn = np.empty(len(names), np.int64)
        turn[np.argsort(_words(seed, _SHARDS, epoch, len(names)), kind="stable")] = np.arange(
            len(names)
        )
        order = order[np.argsort((turn // window)[place_N][order], kind="stable")]
    return order[: num_rows // batch * batch].reshape(-1, batch)


def hold_out(num_rows: int, count: int) -> np.ndarray:
    """Return which of `num_rows` every training leaves out, bool [N]; the same for any seed."""
    held_N = np.zeros(num_rows, bool)
    held_N[np.argsort(_words(0, _HELD_OUT, 0, num_rows), kind="stable")[:count]] = True
    return held_N


def noise_seed(seed: int, step: int, rank: int = 0) -> int:
    """Decide what a student's own randomness (dropout) starts from in a step of a rank."""
    return int(philox_words(np.array([seed, _NOISE], np.uint64), step, rank + 1)[rank])


class Order:
    """The rows of every step of a training, over all ranks.

    rows_N: the rows to train on. shard_N: the shard of each. ranks: by which a step is divided; a
    step is cut to a multiple of it, and rows are repeated where there are fewer rows than ranks.
    """

    def __init__(
        self,
        rows_N: np.ndarray,
        shard_N: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        window: int = 0,
        ranks: int = 1,
    ) -> None:
        if batch_size % ranks:
            raise StudentError(
                f"training.batch_size {batch_size} is of all ranks together: take a multiple of "
                f"{ranks}"
            )
        self._rows_N, self._shard_N = rows_N, shard_N
        self._batch_size, self._seed, self._window, self._ranks = batch_size, seed, window, ranks
        self._plans: dict[int, np.ndarray] = {}
        self.steps_per_epoch = len(self._plan(0))

    def step(self, number: int) -> tuple[np.ndarray, int]:
        """Return the rows of a step, int64 [G], and its epoch."""
        epoch, place = divmod(number, self.steps_per_epoch)
        return self._rows_N[self._plan(epoch)[place]], epoch

    def before(self, number: int, count: int) -> list[tuple[np.ndarray, int]]:
        """Return the last `count` samples before a step as (rows, epoch), oldest first."""
        found: list[tuple[np.ndarray, int]] = []
        while count > 0:
            number -= 1
            rows_G, epoch = self.step(number)
            found.append((rows_G[-count:], epoch))
            count -= len(rows_G)
        return found[::-1]

    def _plan(self, epoch: int) -> np.ndarray:
        """Return an epoch's steps as places among the rows, int64 [steps, G]."""
        if epoch not in self._plans:
            if len(self._plans) > 1:  # this epoch's, and the one that loaders run ahead into
                self._plans.pop(min(self._plans))
            self._plans[epoch] = self._divided(epoch)
        return self._plans[epoch]

    def _divided(self, epoch: int) -> np.ndarray:
        plan = plan_epoch(
            len(self._rows_N),
            self._batch_size,
            self._seed,
            epoch,
            shard_N=self._shard_N,
            window=self._window,
        )
        batch = plan.shape[1]
        if batch < self._ranks:
            return np.resize(plan[0], (1, self._ranks))
        return plan[:, : batch - batch % self._ranks]


def _words(seed: int, purpose: int, epoch: int, count: int) -> np.ndarray:
    """Return `count` words of (seed, epoch) for a purpose; epochs below 0 have numbers apart."""
    if epoch < 0:
        purpose, epoch = purpose + (_EARLIER << 8), -1 - epoch
    return philox_words(np.array([seed, purpose], np.uint64), epoch, count)
