"""The tensors that one room hands to the next.

Shape letters: B batch, G samples of a step over all ranks, M bank, N rows, D teacher dimension,
F feature dimension, A anchors, H W pixels.
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
class TeacherTargets:
    """What another teacher's cache says of the same batch of views.

    target_BD and anchors_AD: normalised, float32, in that teacher's own space; anchor i is of the
    same class as the first teacher's anchor i. logit_scale: that teacher's own.
    """

    target_BD: "torch.Tensor"
    anchors_AD: "torch.Tensor"
    logit_scale: float


@dataclass(frozen=True)
class TargetBatch:
    """What the cache says of the same batch.

    target_BD: normalised teacher image embeddings, float32.
    anchors_AD: normalised text anchors, float32, the same for every batch.
    rows_B: row numbers in the split, int64. labels_B: class numbers, int64, -1 where unknown.
    keys_GD: the targets of the whole step, over all ranks and parts of a batch; the rows `first`
    to `first` + B of it are target_BD.
    bank_MD: the targets of the M samples before this step, the newest last; M may be 0.
    others: what further teachers say of the same views.
    """

    target_BD: "torch.Tensor"
    anchors_AD: "torch.Tensor"
    rows_B: "torch.Tensor"
    labels_B: "torch.Tensor"
    keys_GD: "torch.Tensor"
    bank_MD: "torch.Tensor"
    first: int = 0
    others: tuple[TeacherTargets, ...] = ()


@dataclass(frozen=True)
class Features:
    """A frozen encoder's view of one split, in row order.

    features_NF: backbone features, float32. embedding_ND: teacher space, float32, normalised.
    labels_N: class numbers, int64, -1 where unknown. rows_N: row numbers in the split, int64.
    """

    features_NF: "np.ndarray"
    embedding_ND: "np.ndarray"
    labels_N: "np.ndarray"
    rows_N: "np.ndarray"
