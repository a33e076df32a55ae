"""Supervised learning from labels: the reference row of every table.

Shape letters: B batch, F feature dimension, C classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.contracts import StudentOutputs, TargetBatch
from pipeline.errors import RecipeError
from pipeline.losses.contract import Sizes, WeightOptions
from pipeline.losses.similarity import wide
from pipeline.options import options

UNKNOWN = -1  # the label of a sample without one


@options
class SupervisedOptions(WeightOptions):
    """Options of `supervised`. label_smoothing: the share that goes to all classes alike."""

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing is at least 0 and below 1, not {self.label_smoothing}"
            )


class Supervised(nn.Module):
    """A linear head of C classes over the backbone's features, drawn from the global generator."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        if sizes.num_classes < 1:
            raise RecipeError(
                "losses.supervised needs labels, and no training sample has one (.cls): leave it "
                "out, or give shards with labels"
            )
        self.head = nn.Linear(sizes.num_features, sizes.num_classes)

    def forward(
        self, outputs: StudentOutputs, batch: TargetBatch, spec: SupervisedOptions
    ) -> Tensor:
        """Cross-entropy with the label, -log softmax(W f + b)_label: [B], 0 where it is unknown.

        Label smoothing: Szegedy et al. 2016, section 7 (arXiv 1512.00567).
        """
        with torch.autocast(outputs.features_BF.device.type, enabled=False):
            logits_BC = self.head(wide(outputs.features_BF))
        return F.cross_entropy(
            logits_BC,
            batch.labels_B,
            ignore_index=UNKNOWN,
            reduction="none",
            label_smoothing=spec.label_smoothing,
        )


def labelled(batch: TargetBatch) -> Tensor:
    """Say which samples have a label: bool [B]."""
    return batch.labels_B != UNKNOWN
