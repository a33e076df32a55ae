"""The contract of a loss: what it is called with, what all its options share.

A loss takes (outputs, batch, options) and returns one value per sample, loss_B. One with parameters
of its own is an nn.Module, built with Sizes. Everything of a TargetBatch is constant: no gradient
reaches it. Shape letters: B batch, G samples of a step over all ranks, M bank.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.contracts import Branch, StudentOutputs, TargetBatch
from pipeline.errors import StudentError
from pipeline.options import options

Loss = Callable[[StudentOutputs, TargetBatch, Any], Tensor]


@dataclass(frozen=True)
class Sizes:
    """What the parameters of a loss are shaped by.

    num_features: F of the backbone. dim: D of the (first) teacher. num_anchors: A. num_classes: one
    more than the highest label of the data; 0 if no sample has one. width: E of a model of images
    and texts; 0 for a student of images alone.
    """

    num_features: int
    dim: int
    num_anchors: int
    num_classes: int
    width: int = 0


@options
class WeightOptions:
    """Options of a loss with nothing to set but its weight; 0 switches it off."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        at_least_zero("weight", self.weight)


@options
class BankOptions(WeightOptions):
    """Options of a loss that looks at the newest `bank` targets of earlier steps."""

    bank: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_zero("bank", self.bank)


def both(outputs: StudentOutputs) -> tuple[Branch, Branch]:
    """Return what a student says of images and of texts; raises StudentError if it does not."""
    if outputs.image is None or outputs.text is None:
        raise StudentError(
            "a loss of images and texts (itc, kd_bank, kd_inbatch, kd_mse, kd_kl) needs a student "
            "that reads texts, and captions for it; this one spoke of images alone: give both, or "
            "leave the loss out"
        )
    return outputs.image, outputs.text


def newest(bank_M: Tensor, count: int) -> Tensor:
    """Return the last `count` of a bank's targets, or of their rows; or all there are."""
    return bank_M[max(0, len(bank_M) - count) :]


def own_keys(batch: TargetBatch, count: int) -> Tensor:
    """Return the rows of the split of the batch's `count` samples, int64 [B]."""
    return batch.key_rows_G[batch.first : batch.first + count]


def positive(name: str, value: float) -> None:
    """Raise ValueError if an option is 0 or less."""
    if value <= 0:
        raise ValueError(f"{name} must be positive, not {value}")


def at_least_zero(name: str, value: float) -> None:
    """Raise ValueError if an option is below 0."""
    if value < 0:
        raise ValueError(f"{name} is at least 0, not {value}")
