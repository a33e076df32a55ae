"""The tensors that one room hands to the next.

Shape letters: B batch, G samples of a step over all ranks, M bank, N rows, D teacher dimension,
F feature dimension, E width of a shared space, L places of a text, I inner width, A anchors, H W
pixels.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class TokenBatch:
    """Texts as a student reads them: tokens_BL int64, padded at the end; mask_BL bool, False there.

    There is a text for each image of the batch.
    """

    tokens_BL: "torch.Tensor"
    mask_BL: "torch.Tensor"

    def to(self, device: "torch.device") -> "TokenBatch":
        """Return them on a device; from page-locked memory the copy is not waited for."""
        return TokenBatch(
            self.tokens_BL.to(device, non_blocking=True), self.mask_BL.to(device, non_blocking=True)
        )

    def pin_memory(self) -> "TokenBatch":
        """Return them in memory that a GPU copies from by itself."""
        return TokenBatch(self.tokens_BL.pin_memory(), self.mask_BL.pin_memory())

    def part(self, here: slice) -> "TokenBatch":
        """Return the texts of a part of the batch."""
        return TokenBatch(self.tokens_BL[here], self.mask_BL[here])


@dataclass(frozen=True)
class Branch:
    """What a model of images and texts says of one of the two.

    output_BE: of the shared encoder, float32, not normalised. inner_BI: what the last block's MLP
    has before its activation, float32.
    """

    output_BE: "torch.Tensor"
    inner_BI: "torch.Tensor"


@dataclass(frozen=True)
class StudentOutputs:
    """What a student says of a batch of views.

    features_BF: backbone features, float32, not normalised.
    embedding_BD: projected to the teacher's space, float32, normalised; of a model of images and
    texts, in the space of both.
    image, text: of such a model; text only if it was given texts.
    """

    features_BF: "torch.Tensor"
    embedding_BD: "torch.Tensor"
    image: Branch | None = None
    text: Branch | None = None


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
class Keys:
    """Targets that samples are compared with, and the rows of the split that they are of.

    targets_ND: float32, normalised. rows_N: int64.
    """

    targets_ND: "torch.Tensor"
    rows_N: "torch.Tensor"


@dataclass(frozen=True)
class TargetBatch:
    """What the cache says of the same batch.

    target_BD: normalised teacher image embeddings, float32.
    anchors_AD: normalised text anchors, float32, the same for every batch.
    rows_B: row numbers in the split, int64. labels_B: class numbers, int64, -1 where unknown.
    keys_GD: the targets of the whole step, over all ranks and parts of a batch; the rows `first`
    to `first` + B of it are target_BD.
    bank_MD: the targets of the M samples before this step, the newest last; M may be 0.
    key_rows_G, bank_rows_M: the rows of those, int64.
    norms_B: the lengths that target_BD had before they were normalised, float32.
    others: what further teachers say of the same views. tokens: the texts of the same samples.
    """

    target_BD: "torch.Tensor"
    anchors_AD: "torch.Tensor"
    rows_B: "torch.Tensor"
    labels_B: "torch.Tensor"
    keys_GD: "torch.Tensor"
    bank_MD: "torch.Tensor"
    key_rows_G: "torch.Tensor"
    bank_rows_M: "torch.Tensor"
    norms_B: "torch.Tensor"
    first: int = 0
    others: tuple[TeacherTargets, ...] = ()
    tokens: TokenBatch | None = None


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
