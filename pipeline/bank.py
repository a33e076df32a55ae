"""The targets of the samples before a step, kept on the device; a first-in first-out queue.

Teacher rows are constant, so the queue is a function of the step: a run that goes on gathers it
from the cache, and no queue starts with random vectors. Shape letters: M bank, G step, D dimension.
"""

from typing import Protocol

import torch
from torch import Tensor


class EarlierTargets(Protocol):
    """Whoever knows the targets of earlier steps."""

    def targets_before(self, step: int, count: int) -> Tensor:
        """Return the targets of the last `count` samples before a step, [M,D], newest last."""


class Bank:
    """The last `size` targets before the step at hand."""

    def __init__(self, source: EarlierTargets, size: int, device: torch.device) -> None:
        self._source, self._size, self._device = source, size, device
        self._held_MD: Tensor | None = None

    def before(self, step: int, keys_GD: Tensor) -> Tensor:
        """Return the bank of a step, float32 [M,D]; keys_GD: the step's own targets, which follow.

        Steps are asked for one after another, from any one on.
        """
        if not self._size:
            return keys_GD[:0]
        if self._held_MD is None:
            self._held_MD = self._source.targets_before(step, self._size).to(self._device)
        bank_MD = self._held_MD
        self._held_MD = torch.cat([bank_MD, keys_GD])[-self._size :]
        return bank_MD
