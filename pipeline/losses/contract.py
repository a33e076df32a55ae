"""The contract of a loss: what it is called with, what all its options share.

A loss takes (outputs, batch, options) and returns one value per sample, loss_B. One with parameters
of its own is an nn.Module, built with Sizes. Everything of a TargetBatch is constant: no gradient
reaches it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.contracts import StudentOutputs, TargetBatch
from pipeline.options import options

Loss = Callable[[StudentOutputs, TargetBatch, Any], Tensor]


@dataclass(frozen=True)
class Sizes:
    """What the parameters of a loss are shaped by.

    num_features: F of the backbone. dim: D of the (first) teacher. num_anchors: A. num_classes: one
    more than the highest label of the data; 0 if no sample has one.
    """

    num_features: int
    dim: int
    num_anchors: int
    num_classes: int


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


def positive(name: str, value: float) -> None:
    """Raise ValueError if an option is 0 or less."""
    if value <= 0:
        raise ValueError(f"{name} must be positive, not {value}")


def at_least_zero(name: str, value: float) -> None:
    """Raise ValueError if an option is below 0."""
    if value < 0:
        raise ValueError(f"{name} is at least 0, not {value}")
