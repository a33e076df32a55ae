"""Losses that bring images and texts to the image teacher's target, through a thrown-away head.

The target of a text is that of its image (Aytar et al. 2017; Cares et al. 2025). The value of a
sample is the mean of the image's and the text's. Shape letters: B batch, G samples of a step over
all ranks, M bank, N keys, E width, D teacher dimension, K greatest classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.contracts import StudentOutputs, TargetBatch
from pipeline.errors import RecipeError
from pipeline.losses.contract import (
    BankOptions,
    Sizes,
    WeightOptions,
    both,
    newest,
    own_keys,
    positive,
)
from pipeline.losses.contrast import Scales, contrast, normalised, twins
from pipeline.losses.similarity import wide
from pipeline.options import options


@options
class KdInbatchOptions(WeightOptions):
    """Options of `kd_inbatch`.

    mask_same_image: other targets of the same image are no negatives; off: as in the second
    document's code.
    """

    mask_same_image: bool = True


@options
class KdBankOptions(BankOptions):
    """Options of `kd_bank`, as those of `kd_inbatch`; with a bank of 0 the two are one."""

    bank: int = 65536
    mask_same_image: bool = True


@options
class KdKlOptions(WeightOptions):
    """Options of `kd_kl`.

    T: a temperature of both sides. top_k: how many of the teacher's classes are looked at, the
    greatest, with probabilities that sum to 1; null: all.
    """

    T: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("T", self.T)
        if self.top_k is not None:
            positive("top_k", self.top_k)


class Head(nn.Module):
    """Layer norm and a linear map, E to D, of images and texts alike; no part of the student."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(sizes.width)
        self.linear = nn.Linear(sizes.width, sizes.dim)

    def forward(self, output_BE: Tensor) -> Tensor:
        """Return what is held against the teacher's raw output, float32 [B,D]."""
        with torch.autocast(output_BE.device.type, enabled=False):
            found_BD: Tensor = self.linear(self.norm(wide(output_BE)))
        return found_BD


class KdContrast(nn.Module):
    """InfoNCE of images and texts among the teacher's targets: `kd_bank` and `kd_inbatch`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.head, self.scale = Head(sizes), Scales()

    def forward(
        self, outputs: StudentOutputs, batch: TargetBatch, spec: KdBankOptions | KdInbatchOptions
    ) -> Tensor:
        """Cross-entropy of finding the image's target, -log softmax_j(s z . k_j) at k: [B] (Cares
        et al. 2025).

        z is the normalised head of image or text; k_j are the targets of the whole step and the
        newest `bank` of earlier ones; s is learned.
        """
        bank = spec.bank if isinstance(spec, KdBankOptions) else 0
        keys_ND = torch.cat([batch.keys_GD, newest(batch.bank_MD, bank)]).detach()
        rows_B = own_keys(batch, len(outputs.embedding_BD))
        own_B = torch.arange(len(rows_B), device=rows_B.device) + batch.first
        left_out_BN = None
        if spec.mask_same_image:
            rows_N = torch.cat([batch.key_rows_G, newest(batch.bank_rows_M, bank)])
            left_out_BN = twins(rows_B, rows_N, own_B)
        scale = self.scale()

        def half(output_BE: Tensor) -> Tensor:
            return contrast(normalised(self.head(output_BE)), keys_ND, scale, own_B, left_out_BN)

        return _halves(half, outputs)


class KdMse(nn.Module):
    """The squared distance of images and texts from what the teacher gave."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.head = Head(sizes)

    def forward(self, outputs: StudentOutputs, batch: TargetBatch, spec: WeightOptions) -> Tensor:
        """Mean squared error, |z - r|^2 / D: [B]; z the head, r the target at the length that the
        teacher gave it (an earlier step of the second document: Cares et al. 2025).
        """
        raw_BD = _raw(batch)
        return _halves(lambda x_BE: (self.head(x_BE) - raw_BD).square().mean(dim=1), outputs)


class KdKl(nn.Module):
    """The divergence of images' and texts' class distributions from the teacher's."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.head = Head(sizes)

    def forward(self, outputs: StudentOutputs, batch: TargetBatch, spec: KdKlOptions) -> Tensor:
        """T^2 KL(softmax(r / T) || softmax(z / T)): [B]; z the head, r the teacher's logits (Aytar
        et al. 2017, arXiv 1706.00932; T^2: Hinton et al. 2015, section 2).

        Of a teacher whose feature point is its logits, so that D is its number of classes. Raises
        RecipeError if top_k is above that.
        """
        log_wanted_BK, classes_BK = _teacher_classes(batch, spec)

        def half(output_BE: Tensor) -> Tensor:
            log_given_BD: Tensor = (self.head(output_BE) / spec.T).log_softmax(dim=1)
            log_given_BK = log_given_BD.gather(1, classes_BK)
            each_BK = log_wanted_BK.exp() * (log_wanted_BK - log_given_BK)
            return each_BK.sum(dim=1) * spec.T**2

        return _halves(half, outputs)


def _halves(half: Callable[[Tensor], Tensor], outputs: StudentOutputs) -> Tensor:
    """Return the mean of the image's value and the text's: [B]."""
    return torch.stack([half(branch.output_BE) for branch in both(outputs)]).mean(dim=0)


def _raw(batch: TargetBatch) -> Tensor:
    """Return what the teacher gave before it was normalised, float32 [B,D]."""
    return (wide(batch.norms_B)[:, None] * wide(batch.target_BD)).detach()


def _teacher_classes(batch: TargetBatch, spec: KdKlOptions) -> tuple[Tensor, Tensor]:
    """Return log probabilities of the teacher's greatest classes, [B,K], and which those are."""
    raw_BD = _raw(batch)
    dim = raw_BD.shape[1]
    if spec.top_k is not None and spec.top_k > dim:
        raise RecipeError(
            f"losses.kd_kl: top_k is at most the teacher's {dim} classes, not {spec.top_k}"
        )
    greatest = (raw_BD / spec.T).topk(spec.top_k or dim, dim=1)
    return F.log_softmax(greatest.values, dim=1), greatest.indices
