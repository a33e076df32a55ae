"""Losses are what their equations say, and keep the contract of LOSSES."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from open_clip.loss import DistillClipLoss
from torch import Tensor
from torch.distributions import Categorical
from torch.nn import functional as F

from pipeline.contracts import StudentOutputs, TargetBatch
from pipeline.errors import RecipeError
from pipeline.losses import LOSSES, AnchorOptions, Term, WeightOptions, parse_terms, resolve_tau
from pipeline.losses import csm_ce as csm_ce_loss
from pipeline.losses import entmin as entmin_loss
from pipeline.losses import ism as ism_loss
from pipeline.students import StudentOptions, build_student

TAUS = (0.01, 1 / 13, 1.0)
DTYPES = (torch.float64, torch.float32)
B, D, A = 7, 24, 11


def rows(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return random normalised rows [count, D]."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, D, generator=generator, dtype=dtype), dim=1)


def batch(
    size: int = B, anchors: int = A, dtype: torch.dtype = torch.float64
) -> tuple[StudentOutputs, TargetBatch]:
    """Return what a student and a cache say of `size` samples; the embedding wants gradients."""
    embedding_BD = rows(size, 0, dtype).requires_grad_()
    outputs = StudentOutputs(features_BF=torch.zeros(size, 5), embedding_BD=embedding_BD)
    target_BD = rows(size, 1, dtype)
    targets = TargetBatch(
        target_BD=target_BD,
        anchors_AD=rows(anchors, 2, dtype),
        rows_B=torch.arange(size),
        labels_B=torch.zeros(size, dtype=torch.int64),
        keys_GD=target_BD,
        bank_MD=rows(9, 3, dtype),
    )
    return outputs, targets


def logits(embedding_BD: Tensor, targets: TargetBatch, tau: float) -> Tensor:
    return embedding_BD @ targets.anchors_AD.T / tau


def every_term() -> list[Term]:
    """Return each loss of LOSSES with its default options."""
    return resolve_tau(parse_terms({name: {} for name in LOSSES}, where="test"), 13.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tau", TAUS)
def test_csm_ce_is_torchs_cross_entropy_with_soft_targets(tau: float, dtype: torch.dtype) -> None:
    outputs, targets = batch(dtype=dtype)
    wanted_BA = logits(targets.target_BD, targets, tau).softmax(dim=1)
    given_BA = logits(outputs.embedding_BD, targets, tau)
    expected_B = F.cross_entropy(given_BA, wanted_BA, reduction="none")
    loss_B = csm_ce_loss(outputs, targets, AnchorOptions(tau=tau))
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
    loss = csm_ce_loss(outputs, targets, AnchorOptions(tau=tau)).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tau", TAUS)
def test_entmin_is_the_entropy_of_a_categorical(tau: float, dtype: torch.dtype) -> None:
    outputs, targets = batch(dtype=dtype)
    expected_B = Categorical(logits=logits(outputs.embedding_BD, targets, tau)).entropy()
    loss_B = entmin_loss(outputs, targets, AnchorOptions(tau=tau))
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
    ce = csm_ce_loss(outputs, targets, AnchorOptions(tau=tau)).sum()
    (of_kl,) = torch.autograd.grad(kl, outputs.embedding_BD)
    (of_ce,) = torch.autograd.grad(ce, outputs.embedding_BD)
    torch.testing.assert_close(of_ce, of_kl, rtol=1e-9, atol=1e-12)


def test_csm_ce_is_least_where_the_student_is_the_teacher() -> None:
    """Gibbs: the cross-entropy is at least the teacher's entropy, and equal to it there."""
    outputs, targets = batch()
    spec = AnchorOptions(tau=0.1)
    same = replace(outputs, embedding_BD=targets.target_BD)
    least_B = csm_ce_loss(same, targets, spec)
    torch.testing.assert_close(least_B, entmin_loss(same, targets, spec))
    assert (csm_ce_loss(outputs, targets, spec) > least_B).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_ism_is_least_and_minus_one_where_the_student_is_the_target(
    dtype: torch.dtype, tolerance: float
) -> None:
    outputs, targets = batch(dtype=dtype)
    same = replace(outputs, embedding_BD=targets.target_BD)
    least_B = ism_loss(same, targets, WeightOptions())
    torch.testing.assert_close(least_B, torch.full_like(least_B, -1), rtol=0, atol=tolerance)
    assert (ism_loss(outputs, targets, WeightOptions()) > least_B).all()


def test_a_student_given_its_own_embedding_as_target_has_an_ism_of_minus_one() -> None:
    """A real student in evaluation mode, float32: -1 within 1e-6 for every sample."""
    student = build_student(StudentOptions(model="test_resnet"), dim=D, input_px=32, seed=0).eval()
    views = torch.randint(0, 256, (B, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        outputs = student(views)
        _, targets = batch(dtype=torch.float32)
        loss_B = ism_loss(
            outputs, replace(targets, target_BD=student(views).embedding_BD), WeightOptions()
        )
    torch.testing.assert_close(loss_B, torch.full((B,), -1.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_negative_weight_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="weight is at least 0, not -1"):
        parse_terms({name: {"weight": -1}}, where="test")


def test_ism_is_the_negative_cosine() -> None:
    outputs, targets = batch()
    expected_B = -F.cosine_similarity(outputs.embedding_BD, targets.target_BD)
    torch.testing.assert_close(ism_loss(outputs, targets, WeightOptions()), expected_B)


class TestContract:
    """What every entry of LOSSES promises."""

    @pytest.fixture(params=every_term(), ids=lambda term: term.name)
    def term(self, request: pytest.FixtureRequest) -> Term:
        term: Term = request.param
        return term

    @pytest.mark.parametrize(("size", "anchors"), [(B, A), (1, A), (B, 1)])
    def test_gives_one_finite_value_per_sample(self, term: Term, size: int, anchors: int) -> None:
        outputs, targets = batch(size, anchors, torch.float32)
        loss_B = term(outputs, targets)
        assert loss_B.shape == (size,)
        assert loss_B.dtype == torch.float32
        assert torch.isfinite(loss_B).all()

    def test_stays_finite_at_the_sharpest_tau_and_for_opposite_vectors(self, term: Term) -> None:
        _, targets = batch(dtype=torch.float32)
        opposite = (-targets.target_BD).requires_grad_()
        outputs = StudentOutputs(features_BF=torch.zeros(B, 5), embedding_BD=opposite)
        spec = replace(term.spec, tau=1e-3) if hasattr(term.spec, "tau") else term.spec
        loss_B = Term(term.name, spec)(outputs, targets)
        (gradient_BD,) = torch.autograd.grad(loss_B.sum(), opposite)
        assert torch.isfinite(loss_B).all()
        assert torch.isfinite(gradient_BD).all()

    def test_moves_the_embedding_of_every_sample(self, term: Term) -> None:
        outputs, targets = batch()
        (gradient_BD,) = torch.autograd.grad(term(outputs, targets).sum(), outputs.embedding_BD)
        assert torch.isfinite(gradient_BD).all()
        assert (gradient_BD.abs().sum(dim=1) > 0).all()

    def test_leaves_the_targets_alone(self, term: Term) -> None:
        outputs, targets = batch()
        before = {name: value.clone() for name, value in vars(targets).items()}
        term(outputs, targets).sum().backward()
        for name, value in vars(targets).items():
            assert torch.equal(value, before[name]), name
            assert value.grad is None, name

    def test_of_a_sample_does_not_depend_on_the_others(self, term: Term) -> None:
        outputs, targets = batch()
        loss_B = term(outputs, targets)
        for i in range(B):
            one = slice(i, i + 1)
            alone = StudentOutputs(outputs.features_BF[one], outputs.embedding_BD[one])
            its_own = replace(
                targets,
                target_BD=targets.target_BD[one],
                rows_B=targets.rows_B[one],
                labels_B=targets.labels_B[one],
            )
            torch.testing.assert_close(term(alone, its_own), loss_B[one], rtol=1e-12, atol=1e-12)

    def test_has_a_weight_of_one_unless_the_recipe_says_another(self, term: Term) -> None:
        assert term.spec.weight == 1


def test_tau_is_the_teachers_own_unless_the_recipe_says_a_number() -> None:
    fields = {"csm_ce": {}, "entmin": {"tau": 0.02}, "ism": {"weight": 10}}
    by_name = {t.name: t.spec for t in resolve_tau(parse_terms(fields, where="test"), 12.5)}
    assert by_name["csm_ce"].tau == pytest.approx(0.08)
    assert by_name["entmin"].tau == 0.02
    assert by_name["ism"] == WeightOptions(weight=10)


def test_an_open_tau_is_never_guessed() -> None:
    with pytest.raises(ValueError, match="not resolved"):
        csm_ce_loss(*batch(), AnchorOptions())


def test_weight_zero_switches_a_loss_off() -> None:
    terms = parse_terms({"csm_ce": {"weight": 0}, "ism": {"weight": 10}}, where="test")
    assert [(term.name, term.spec.weight) for term in terms] == [("ism", 10)]


def test_terms_keep_the_order_of_the_recipe() -> None:
    fields: dict[str, dict[str, Any]] = {"ism": {}, "csm_ce": {}, "entmin": {}}
    assert [term.name for term in parse_terms(fields, where="test")] == list(fields)


@pytest.mark.parametrize("losses", [{}, {"ism": {"weight": 0}}, {"ism": {"weight": 0.0}}])
def test_no_loss_at_all_is_an_error(losses: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"no loss has a weight: expected one of csm_ce, entmin"):
        parse_terms(losses, where="test")


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"csm-ce": {}}, r"unknown loss 'csm-ce': did you mean 'csm_ce'\?"),
        ({"entropy": {}}, r"unknown loss 'entropy'.*(entmin|csm_ce)"),
        ({"csm_ce": {"taus": 1}}, r"losses\.csm_ce.*\n.*'taus': did you mean 'tau'\?"),
        ({"ism": {"tau": 1}}, r"losses\.ism.*\n.*unknown key 'tau'"),
        ({"csm_ce": {"tau": 0}}, "tau must be positive, not 0"),
        ({"csm_ce": {"tau": -0.1}}, "tau must be positive, not -0.1"),
        ({"csm_ce": {"tau": math.nan}}, "'tau': input should be a finite number"),
        ({"entmin": {"tau": math.inf}}, "'tau': input should be a finite number"),
        ({"ism": {"weight": math.nan}}, "'weight': input should be a finite number"),
        ({"ism": {"weight": "much"}}, "'weight'"),
    ],
)
def test_a_wrong_loss_or_option_is_named(losses: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        parse_terms(losses, where="recipe r")
    assert "recipe r" in str(caught.value)
