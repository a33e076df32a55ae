"""The tensors that one room hands to the next.

Shape letters: B batch, N rows, D teacher dimension, F feature dimension, A anchors, H W pixels.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class StudentOutputs:
    """What a student says of a batch of views.

    features_BF: backbone features, float32, not normalised.
    embedding_BD: projected to the teacher's space, float32, normalised.
    """

    features_BF: "torch.Tensor"
    embedding_BD: "torch.Tensor"


@dataclass(frozen=True)
class TargetBatch:
    """What the cache says of the same batch.

    target_BD: normalised teacher image embeddings, float32.
    anchors_AD: normalised text anchors, float32, the same for every batch.
    rows_B: row numbers in the split, int64. labels_B: class numbers, int64, -1 where unknown.
    """

    target_BD: "torch.Tensor"
    anchors_AD: "torch.Tensor"
    rows_B: "torch.Tensor"
    labels_B: "torch.Tensor"


@dataclass(frozen=True)
class Features:
    """A frozen encoder's view of one split, in row order.

    features_NF: backbone features, float32. embedding_ND: teacher space, float32, normalised.
    labels_N: class numbers, int64, -1 where unknown.
    """

    features_NF: "np.ndarray"
    embedding_ND: "np.ndarray"
    labels_N: "np.ndarray"
