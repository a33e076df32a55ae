"""Relational knowledge distillation: distances and angles within a batch.

Relations are of the samples that the student sees at once: with several ranks, of each rank's own.
Shape letters: B batch, D teacher dimension, C apexes looked at together.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pipeline.contracts import StudentOutputs, TargetBatch
from pipeline.losses.contract import WeightOptions, at_least_zero
from pipeline.losses.similarity import dots, wide
from pipeline.options import options

# Angles are B^3 numbers, 512 MiB for B = 512. They are made for so many at a time, forgotten, and
# made again on the way back: about ten times 8 MiB at once up to B = 1448, where one apex is more.
_ANGLES_AT_ONCE = 2**21
# Vectors closer than this have no direction in float32: they take part in no angle.
_CLOSEST = 1e-6


@options
class RkdOptions(WeightOptions):
    """Weights of the two parts of `rkd`; 0 leaves one out. The paper has 1 to 2."""

    distance: float = 1.0
    angle: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_zero("distance", self.distance)
        at_least_zero("angle", self.angle)
        if self.distance == self.angle == 0:
            raise ValueError("distance or angle is above 0, not both 0")


def rkd(outputs: StudentOutputs, batch: TargetBatch, spec: RkdOptions) -> Tensor:
    """Smooth L1 of distances over their mean, and of the cosines of angles: [B] (RKD, Park et al.
    2019, section 3.2, arXiv 1904.05068).

    With h the smooth L1 distance between student and teacher, the value of sample i is
    distance * mean_j h(d_ij / mu) + angle * mean_jk h(cos of the angle j-i-k), mu the mean of the
    distances above 0: its mean over i is the paper's scalar as its authors' code scales it (every
    pair and triple counts, also of a sample with itself). Angles take time as B^3: seconds a step
    for 512 samples on one CPU core.
    """
    student_BD, target_BD = wide(outputs.embedding_BD), wide(batch.target_BD).detach()
    student_BB, target_BB = _distances(student_BD), _distances(target_BD)
    loss_B = spec.distance * _differences(_scaled(student_BB), _scaled(target_BB)).mean(dim=1)
    if spec.angle > 0:
        student = _products(student_BD), _inverses(student_BB)
        target = _products(target_BD), _inverses(target_BB)
        loss_B = loss_B + spec.angle * _angle_part(student, target)
    return loss_B


_differences = partial(F.smooth_l1_loss, reduction="none")


def _distances(x_BD: Tensor) -> Tensor:
    """Return |x_i - x_j|: [B,B]; its gradient is 0 where that is 0."""
    # From differences, not products, which lose half of the digits between near vectors.
    return torch.cdist(x_BD, x_BD, compute_mode="donot_use_mm_for_euclid_dist")


def _scaled(distance_BB: Tensor) -> Tensor:
    mean = distance_BB.sum() / (distance_BB > 0).sum().clamp(min=1)
    return distance_BB / mean.clamp(min=_CLOSEST)


def _products(x_BD: Tensor) -> Tensor:
    """Return x_i . x_j from their mean, which no angle depends on and digits do: [B,B]."""
    centred_BD = x_BD - x_BD.mean(dim=0)
    return dots(centred_BD, centred_BD)


def _inverses(distance_BB: Tensor) -> Tensor:
    """Return 1 / distance: [B,B], 0 with no gradient between vectors that coincide."""
    apart_BB = distance_BB > _CLOSEST
    return torch.where(apart_BB, distance_BB, 1.0).reciprocal() * apart_BB


def _angle_part(student: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean over j, k of the angles' differences at every apex: [B]."""
    size = len(student[0])
    step = max(1, _ANGLES_AT_ONCE // size**2)
    parts: list[Any] = [
        checkpoint(
            _at_apexes,
            *student,
            *target,
            slice(first, first + step),
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for first in range(0, size, step)
    ]
    return torch.cat(parts)


def _at_apexes(
    student_BB: Tensor,
    student_inverse_BB: Tensor,
    target_BB: Tensor,
    target_inverse_BB: Tensor,
    apexes: slice,
) -> Tensor:
    given_CBB = _cosines(student_BB, student_inverse_BB, apexes)
    wanted_CBB = _cosines(target_BB, target_inverse_BB, apexes)
    return _differences(given_CBB, wanted_CBB).mean(dim=(1, 2))


def _cosines(product_BB: Tensor, inverse_BB: Tensor, apexes: slice) -> Tensor:
    """Return (x_j - x_i) . (x_k - x_i) / (d_ij d_ik) for the apexes i: [C,B,B]."""
    own_C = product_BB.diagonal()[apexes]
    to_apex_CB, inverse_CB = product_BB[apexes], inverse_BB[apexes]
    # |x_i|^2 comes first: it is added to numbers of its size.
    from_apex_CB = own_C[:, None] - to_apex_CB
    product_CBB = product_BB - to_apex_CB[:, None, :] + from_apex_CB[:, :, None]
    return product_CBB * inverse_CB[:, :, None] * inverse_CB[:, None, :]
