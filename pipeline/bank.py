"""The targets of the samples before a step, kept on the device; a first-in first-out queue.

Teacher rows are constant, so the queue is a function of the step: a run that goes on gathers it
from the cache, and no queue starts with random vectors. Shape letters: M bank, G step, D dimension.
"""

from typing import Protocol

import torch

from pipeline.contracts import Keys


class EarlierTargets(Protocol):
    """Whoever knows the targets of earlier steps."""

    def keys_before(self, step: int, count: int) -> Keys:
        """Return the targets of the last `count` samples before a step, newest last."""


class Bank:
    """The last `size` targets before the step at hand."""

    def __init__(self, source: EarlierTargets, size: int, device: torch.device) -> None:
        self._source, self._size, self._device = source, size, device
        self._held: Keys | None = None

    def before(self, step: int, keys: Keys) -> Keys:
        """Return the bank of a step, M long; keys: the step's own targets, which follow.

        Steps are asked for one after another, from any one on.
        """
        if not self._size:
            return Keys(keys.targets_ND[:0], keys.rows_N[:0])
        if self._held is None:
            found = self._source.keys_before(step, self._size)
            self._held = Keys(found.targets_ND.to(self._device), found.rows_N.to(self._device))
        bank = self._held
        self._held = Keys(
            torch.cat([bank.targets_ND, keys.targets_ND])[-self._size :],
            torch.cat([bank.rows_N, keys.rows_N])[-self._size :],
        )
        return bank
