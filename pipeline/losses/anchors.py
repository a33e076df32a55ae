"""Losses over the anchors: what a softmax over class texts says of an image.

Notation of the source document (000, BeamCLIP): q student embedding, k target, a_j anchors, all
normalised; P(x|A) = softmax_j(x . a_j / tau). With further teachers the teacher's P(k|A) is the
mean of every teacher's own, each in its own space: embeddings of different spaces have no mean.
Shape letters: B batch, D teacher dimension, A anchors, R teachers.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from pipeline.contracts import StudentOutputs, TargetBatch
from pipeline.losses.contract import WeightOptions, positive
from pipeline.losses.similarity import logits
from pipeline.options import options


@options
class AnchorOptions(WeightOptions):
    """Options of a loss over the anchors. tau null: the teacher's own 1 / logit_scale."""

    tau: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau is not None:
            positive("tau", self.tau)


@options
class KdOptions(AnchorOptions):
    """Options of `kd`, at the temperature tau * T.

    reduction: `sum` over the anchors is the KL divergence; `mean` divides it by A, as kl_div of
    torch 2 does by default. direction: `forward` is KL(teacher || student), `reverse` the other.
    """

    T: float = 1.0
    reduction: Literal["sum", "mean"] = "sum"
    direction: Literal["forward", "reverse"] = "forward"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("T", self.T)


def csm_ce(outputs: StudentOutputs, batch: TargetBatch, spec: AnchorOptions) -> Tensor:
    """Cross-modal similarity matching, H(P(k|A), P(q|A)): [B] (BeamCLIP, Eq. 5-7)."""
    tau = _resolved(spec)
    wanted_BA = _teacher_logits(batch, tau).softmax(dim=2).mean(dim=0)
    log_given_BA = logits(outputs.embedding_BD, batch.anchors_AD, tau).log_softmax(dim=1)
    return -(wanted_BA * log_given_BA).sum(dim=1)


def entmin(outputs: StudentOutputs, batch: TargetBatch, spec: AnchorOptions) -> Tensor:
    """Entropy of the student's own distribution, H(P(q|A)): [B] (BeamCLIP, Eq. 7)."""
    tau = _resolved(spec)
    log_given_BA = logits(outputs.embedding_BD, batch.anchors_AD, tau).log_softmax(dim=1)
    return -(log_given_BA.exp() * log_given_BA).sum(dim=1)


def kd(outputs: StudentOutputs, batch: TargetBatch, spec: KdOptions) -> Tensor:
    """Knowledge distillation, T^2 KL(P(k|A) || P(q|A)) at tau * T: [B] (Hinton et al. 2015, section
    2, arXiv 1503.02531; on anchors: BeamCLIP, section 4.3).

    With T = 1, `forward` and `sum` its gradient is that of csm_ce: the two differ by H(P(k|A)),
    which the student has no part in. BeamCLIP's Table 6 has KD at 56.4 and its own cross-entropy at
    65.5 on ImageNet; KL in place of cross-entropy cannot be why, but a temperature, a `mean` over
    1,000 anchors (a loss a thousand times smaller), the other direction, the start or EntMin can.
    Expect a faithful kd to do better than that table.
    """
    tau = _resolved(spec)
    # In logarithms throughout: at a sharp tau a P underflows, and its logarithm is still needed.
    log_wanted_BA = _log_mean(_teacher_logits(batch, tau, spec.T).log_softmax(dim=2))
    log_given_BA = logits(outputs.embedding_BD, batch.anchors_AD, tau * spec.T).log_softmax(dim=1)
    log_p_BA, log_other_BA = log_wanted_BA, log_given_BA
    if spec.direction == "reverse":
        log_p_BA, log_other_BA = log_given_BA, log_wanted_BA
    kl_B = (log_p_BA.exp() * (log_p_BA - log_other_BA)).sum(dim=1)
    return spec.T**2 * kl_B / (len(batch.anchors_AD) if spec.reduction == "mean" else 1)


def _resolved(spec: AnchorOptions) -> float:
    if spec.tau is None:
        raise ValueError("tau is not resolved: see resolve_tau")
    return spec.tau


@torch.no_grad()
def _teacher_logits(batch: TargetBatch, tau: float, softening: float = 1.0) -> Tensor:
    """Return every teacher's logits, float32 [R,B,A]; further ones at their own 1 / logit_scale."""
    first_BA = logits(batch.target_BD, batch.anchors_AD, tau * softening)
    further = [
        logits(other.target_BD, other.anchors_AD, softening / other.logit_scale)
        for other in batch.others
    ]
    return torch.stack([first_BA, *further])


def _log_mean(log_p_RBA: Tensor) -> Tensor:
    """Return the logarithm of the mean over teachers: [B,A]."""
    return log_p_RBA.logsumexp(dim=0) - math.log(len(log_p_RBA))
