"""Losses between an embedding and targets: its own, the step's, those of earlier steps.

q is the student's embedding, k its target, both normalised; of several teachers, the first one's.
Shape letters: B batch, G samples of a step over all ranks, M bank, N keys, D teacher dimension.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.contracts import StudentOutputs, TargetBatch
from pipeline.losses.contract import BankOptions, WeightOptions, newest, positive
from pipeline.losses.similarity import logits, wide
from pipeline.options import options


@options
class CrdOptions(BankOptions):
    """Options of `crd`; the document gives none, tau is that of Tian et al. (arXiv 1910.10699).

    A row of the bank is a negative even where it is an earlier view of the same image: keep `bank`
    well below the number of images.
    """

    tau: float = 0.07

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("tau", self.tau)


@options
class SeedOptions(BankOptions):
    """Options of `seed`, with the paper's defaults; without a bank there is nothing to learn."""

    tau_teacher: float = 0.01
    tau_student: float = 0.2
    bank: int = 65536

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("tau_teacher", self.tau_teacher)
        positive("tau_student", self.tau_student)
        positive("bank", self.bank)


def ism(outputs: StudentOutputs, batch: TargetBatch, spec: WeightOptions) -> Tensor:
    """Instance similarity matching, -q . k: [B], at least -1 (BeamCLIP, Eq. 4)."""
    return -_own(outputs.embedding_BD, batch.target_BD)


def mse(outputs: StudentOutputs, batch: TargetBatch, spec: WeightOptions) -> Tensor:
    """Mean squared error, |q - k|^2 / D: [B] (CLIP-KD's feature distillation, arXiv 2307.12732).

    Of normalised vectors it is 2 (1 - q . k) / D, so that ism with a weight of 2 / D has its
    gradient; CLIP-KD gives it a weight of 2,000.
    """
    difference_BD = wide(outputs.embedding_BD) - wide(batch.target_BD).detach()
    return difference_BD.square().mean(dim=1)


def crd(outputs: StudentOutputs, batch: TargetBatch, spec: CrdOptions) -> Tensor:
    """InfoNCE of q among targets, -log(exp(q . k / tau) / sum_j exp(q . k_j / tau)): [B] (BeamCLIP,
    section 4.3, "a variant of InfoNCE"; van den Oord et al. 2018, Eq. 4, arXiv 1807.03748).

    k_j are the targets of the whole step and the newest `bank` of earlier ones. From q to k only:
    k learns nothing. Not the two-bank loss of Tian et al., nor CLIP-KD's of the same name.
    """
    keys_ND = torch.cat([batch.keys_GD, newest(batch.bank_MD, spec.bank)])
    own_B = torch.arange(len(outputs.embedding_BD), device=keys_ND.device) + batch.first
    return F.cross_entropy(logits(outputs.embedding_BD, keys_ND, spec.tau), own_B, reduction="none")


def seed(outputs: StudentOutputs, batch: TargetBatch, spec: SeedOptions) -> Tensor:
    """Cross-entropy of similarities to a queue, H(softmax(k . Q / tau_teacher), softmax(q . Q /
    tau_student)): [B] (SEED, Fang et al. 2021, section 3.2, arXiv 2101.04731).

    Q is the sample's own target and the newest `bank` targets of earlier steps.
    """
    queue_MD = newest(batch.bank_MD, spec.bank)
    target_BD = batch.target_BD.detach()
    wanted_BQ = _queue_logits(target_BD, target_BD, queue_MD, spec.tau_teacher).softmax(dim=1)
    given_BQ = _queue_logits(outputs.embedding_BD, target_BD, queue_MD, spec.tau_student)
    return -(wanted_BQ * given_BQ.log_softmax(dim=1)).sum(dim=1)


def _own(x_BD: Tensor, target_BD: Tensor) -> Tensor:
    return (wide(x_BD) * wide(target_BD).detach()).sum(dim=1)


def _queue_logits(x_BD: Tensor, target_BD: Tensor, queue_MD: Tensor, tau: float) -> Tensor:
    """Return x . y / tau for its own target and the queue: [B,1+M]."""
    own_B1 = _own(x_BD, target_BD)[:, None] / tau
    return torch.cat([own_B1, logits(x_BD, queue_MD, tau)], dim=1)
