"""Losses over the anchors are what their equations say."""

import math
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from open_clip.loss import DistillClipLoss
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F

from pipeline.contracts import StudentOutputs, TargetBatch
from pipeline.losses.anchors import AnchorOptions, KdOptions, csm_ce, entmin, kd
from tests.losses.samples import DTYPES, TAUS, A, B, batch, further_teachers


def logits(embedding_BD: Tensor, targets: TargetBatch, tau: float) -> Tensor:
    return embedding_BD @ targets.anchors_AD.T / tau


def log_p(embedding_BD: Tensor, targets: TargetBatch, tau: float) -> Tensor:
    return logits(embedding_BD, targets, tau).log_softmax(dim=1)


def gradient(loss: Tensor, outputs: StudentOutputs) -> Tensor:
    (found,) = torch.autograd.grad(loss, outputs.embedding_BD, retain_graph=True)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tau", TAUS)
def test_csm_ce_is_torchs_cross_entropy_with_soft_targets(tau: float, dtype: torch.dtype) -> None:
    outputs, targets = batch(dtype=dtype)
    wanted_BA = logits(targets.target_BD, targets, tau).softmax(dim=1)
    given_BA = logits(outputs.embedding_BD, targets, tau)
    expected_B = F.cross_entropy(given_BA, wanted_BA, reduction="none")
    loss_B = csm_ce(outputs, targets, AnchorOptions(tau=tau))
    torch.testing.assert_close(loss_B, expected_B, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tau", TAUS)
def test_csm_ce_is_open_clips_distillation_loss_on_the_logits(
    tau: float, dtype: torch.dtype
) -> None:
    outputs, targets = batch(dtype=dtype)
    expected = DistillClipLoss().dist_loss(
        logits(targets.target_BD, targets, tau), logits(outputs.embedding_BD, targets, tau)
    )
    loss = csm_ce(outputs, targets, AnchorOptions(tau=tau)).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tau", TAUS)
def test_entmin_is_the_entropy_of_a_categorical(tau: float, dtype: torch.dtype) -> None:
    outputs, targets = batch(dtype=dtype)
    expected_B = Categorical(logits=logits(outputs.embedding_BD, targets, tau)).entropy()
    loss_B = entmin(outputs, targets, AnchorOptions(tau=tau))
    # Logits reach 1 / tau, and float32 keeps 7 digits of them.
    tolerance = max(1e-6, torch.finfo(dtype).eps / tau)
    torch.testing.assert_close(loss_B, expected_B, rtol=1e-6, atol=tolerance)


@pytest.mark.parametrize("tau", TAUS)
def test_kl_and_csm_ce_push_the_student_the_same_way(tau: float) -> None:
    """H(p, q) = KL(p || q) + H(p), and H(p) is the teacher's alone."""
    outputs, targets = batch()
    log_given_BA = logits(outputs.embedding_BD, targets, tau).log_softmax(dim=1)
    wanted_BA = logits(targets.target_BD, targets, tau).softmax(dim=1)
    kl = F.kl_div(log_given_BA, wanted_BA, reduction="sum")
    ce = csm_ce(outputs, targets, AnchorOptions(tau=tau)).sum()
    (of_kl,) = torch.autograd.grad(kl, outputs.embedding_BD)
    (of_ce,) = torch.autograd.grad(ce, outputs.embedding_BD)
    torch.testing.assert_close(of_ce, of_kl, rtol=1e-9, atol=1e-12)


def test_csm_ce_is_least_where_the_student_is_the_teacher() -> None:
    """Gibbs: the cross-entropy is at least the teacher's entropy, and equal to it there."""
    outputs, targets = batch()
    spec = AnchorOptions(tau=0.1)
    same = replace(outputs, embedding_BD=targets.target_BD)
    least_B = csm_ce(same, targets, spec)
    torch.testing.assert_close(least_B, entmin(same, targets, spec))
    assert (csm_ce(outputs, targets, spec) > least_B).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_kd_is_torchs_kl_div(
    tau: float, dtype: torch.dtype, reduction: Literal["sum", "mean"]
) -> None:
    """`sum` is torch's `batchmean`; `mean` is its `mean`, which divides by A as well."""
    outputs, targets = batch(dtype=dtype)
    found = kd(outputs, targets, KdOptions(tau=tau, reduction=reduction)).mean()
    # Spelled out, since torch warns that its `mean` will change.
    each_BA = F.kl_div(
        log_p(outputs.embedding_BD, targets, tau),
        log_p(targets.target_BD, targets, tau).exp(),
        reduction="none",
    )
    expected = each_BA.mean() if reduction == "mean" else each_BA.sum() / B
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kd_is_the_divergence_of_two_categoricals(
    tau: float, direction: Literal["forward", "reverse"]
) -> None:
    outputs, targets = batch()
    teacher = Categorical(logits=logits(targets.target_BD, targets, tau))
    student = Categorical(logits=logits(outputs.embedding_BD, targets, tau))
    pair = (teacher, student) if direction == "forward" else (student, teacher)
    loss_B = kd(outputs, targets, KdOptions(tau=tau, direction=direction))
    torch.testing.assert_close(loss_B, kl_divergence(*pair), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kd_softens_by_a_temperature_over_tau_and_scales_by_its_square(dtype: torch.dtype) -> None:
    outputs, targets = batch(dtype=dtype)
    found_B = kd(outputs, targets, KdOptions(tau=0.05, T=4.0))
    expected_B = 16 * kd(outputs, targets, KdOptions(tau=0.2))
    torch.testing.assert_close(found_B, expected_B, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("others", [(), further_teachers()], ids=["one", "three"])
def test_kd_has_the_gradient_of_csm_ce(tau: float, others: tuple[Any, ...]) -> None:
    """KL in place of cross-entropy changes no step of a training: Table 6 has another reason."""
    outputs, targets = batch()
    targets = replace(targets, others=others)
    of_kd = gradient(kd(outputs, targets, KdOptions(tau=tau)).sum(), outputs)
    of_ce = gradient(csm_ce(outputs, targets, AnchorOptions(tau=tau)).sum(), outputs)
    torch.testing.assert_close(of_kd, of_ce, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "fields", [{"T": 4.0}, {"direction": "reverse"}, {"reduction": "mean"}], ids=str
)
def test_each_option_of_kd_leaves_the_gradient_of_csm_ce(fields: dict[str, Any]) -> None:
    outputs, targets = batch()
    of_kd = gradient(kd(outputs, targets, KdOptions(tau=0.1, **fields)).sum(), outputs)
    of_ce = gradient(csm_ce(outputs, targets, AnchorOptions(tau=0.1)).sum(), outputs)
    assert (of_kd - of_ce).norm() > 0.1 * of_ce.norm()
    if "reduction" in fields:
        torch.testing.assert_close(A * of_kd, of_ce)


def test_kd_is_nothing_where_the_student_is_the_teacher() -> None:
    outputs, targets = batch()
    same = replace(outputs, embedding_BD=targets.target_BD)
    for direction in ("forward", "reverse"):
        spec = KdOptions(tau=0.1, direction=direction)
        assert kd(same, targets, spec).abs().max() < 1e-12
        assert (kd(outputs, targets, spec) > 0).all()


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kd_is_finite_where_the_teachers_p_underflows(
    direction: Literal["forward", "reverse"],
) -> None:
    outputs, targets = batch(dtype=torch.float32)
    assert (logits(targets.target_BD, targets, 1e-3).softmax(dim=1) == 0).any()
    loss_B = kd(outputs, targets, KdOptions(tau=1e-3, direction=direction))
    assert torch.isfinite(loss_B).all()
    assert torch.isfinite(gradient(loss_B.sum(), outputs)).all()


class TestFurtherTeachers:
    """The target is the mean of every teacher's P, each in its own space."""

    def mean_p(self, targets: TargetBatch, tau: float, T: float = 1.0) -> Tensor:
        """Return the mean of three teachers' P in plain loops over samples and anchors."""
        spaces = [(targets.target_BD, targets.anchors_AD, tau)]
        spaces += [(o.target_BD, o.anchors_AD, 1 / o.logit_scale) for o in targets.others]
        assert len(spaces) == 3
        mean_BA = torch.zeros(len(targets.target_BD), A, dtype=torch.float64)
        for target_BD, anchors_AD, its_tau in spaces:
            for i, target_D in enumerate(target_BD):
                terms = [math.exp(float(target_D @ a_D) / (its_tau * T)) for a_D in anchors_AD]
                mean_BA[i] += torch.tensor(terms) / sum(terms) / 3
        return mean_BA

    def samples(self, dtype: torch.dtype) -> tuple[StudentOutputs, TargetBatch]:
        outputs, targets = batch(dtype=dtype)
        return outputs, replace(targets, others=further_teachers(dtype))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("tau", TAUS)
    def test_csm_ce_is_the_cross_entropy_with_it(self, tau: float, dtype: torch.dtype) -> None:
        outputs, targets = self.samples(dtype)
        wanted_BA = self.mean_p(targets, tau).to(dtype)
        expected_B = F.cross_entropy(
            logits(outputs.embedding_BD, targets, tau), wanted_BA, reduction="none"
        )
        loss_B = csm_ce(outputs, targets, AnchorOptions(tau=tau))
        tolerance = 1e-6 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(loss_B, expected_B, rtol=tolerance, atol=tolerance)

    @pytest.mark.parametrize("T", [1.0, 3.0])
    @pytest.mark.parametrize("direction", ["forward", "reverse"])
    def test_kd_is_the_divergence_from_it(
        self, direction: Literal["forward", "reverse"], T: float
    ) -> None:
        outputs, targets = self.samples(torch.float64)
        teacher = Categorical(probs=self.mean_p(targets, 0.1, T))
        student = Categorical(logits=logits(outputs.embedding_BD, targets, 0.1 * T))
        pair = (teacher, student) if direction == "forward" else (student, teacher)
        loss_B = kd(outputs, targets, KdOptions(tau=0.1, T=T, direction=direction))
        torch.testing.assert_close(loss_B, T**2 * kl_divergence(*pair), rtol=1e-6, atol=1e-6)

    def test_the_same_teacher_thrice_is_that_teacher(self) -> None:
        outputs, targets = self.samples(torch.float64)
        (other, _) = targets.others
        again = replace(
            other, target_BD=targets.target_BD, anchors_AD=targets.anchors_AD, logit_scale=10.0
        )
        thrice = replace(targets, others=(again, again))
        once = replace(targets, others=())
        for loss, spec in ((csm_ce, AnchorOptions(tau=0.1)), (kd, KdOptions(tau=0.1))):
            torch.testing.assert_close(loss(outputs, thrice, spec), loss(outputs, once, spec))


@pytest.mark.parametrize("loss", [csm_ce, entmin, kd])
def test_an_open_tau_is_never_guessed(loss: Any) -> None:
    with pytest.raises(ValueError, match="not resolved"):
        loss(*batch(), KdOptions())
