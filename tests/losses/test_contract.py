"""What every entry of LOSSES promises."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn

from pipeline.contracts import StudentOutputs
from pipeline.errors import RecipeError
from pipeline.losses import LOSSES, Term, parse_terms
from tests.losses.samples import A, B, batch, built, every_term, further_teachers, value

HALVES = (torch.bfloat16, torch.float16)
# These compare the samples of a batch with each other.
OF_THE_BATCH = {"rkd"}


@pytest.fixture(params=every_term(), ids=lambda term: term.name)
def term(request: pytest.FixtureRequest) -> Term:
    term: Term = request.param
    return term


def moved(term: Term, outputs: StudentOutputs) -> Tensor:
    """Return what a loss pushes: the embedding, or the features where it stops at them."""
    uses_embedding = LOSSES[term.name].uses_embedding
    return outputs.embedding_BD if uses_embedding else outputs.features_BF


def gradient(loss_B: Tensor, of: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss_B.sum(), of)
    return found


@pytest.mark.parametrize(("size", "anchors"), [(B, A), (1, A), (B, 1), (1, 1)])
def test_gives_one_finite_value_per_sample(term: Term, size: int, anchors: int) -> None:
    outputs, targets = batch(size, anchors, torch.float32)
    loss_B = value(term, outputs, targets)
    assert loss_B.shape == (size,)
    assert loss_B.dtype == torch.float32
    assert torch.isfinite(loss_B).all()
    assert torch.isfinite(gradient(loss_B, moved(term, outputs))).all()


@pytest.mark.parametrize("size", [1, B])
def test_needs_no_bank(term: Term, size: int) -> None:
    outputs, targets = batch(size, dtype=torch.float32)
    loss_B = value(term, outputs, replace(targets, bank_MD=targets.bank_MD[:0]))
    assert torch.isfinite(loss_B).all()
    assert torch.isfinite(gradient(loss_B, moved(term, outputs))).all()


def test_stays_finite_at_the_sharpest_tau_and_for_opposite_vectors(term: Term) -> None:
    _, targets = batch(dtype=torch.float32)
    outputs = StudentOutputs(
        features_BF=torch.full((B, 5), 1e4).requires_grad_(),
        embedding_BD=(-targets.target_BD).requires_grad_(),
    )
    taus = {f.name: 1e-3 for f in fields(term.spec) if f.name.startswith("tau")}
    loss_B = value(Term(term.name, replace(term.spec, **taus)), outputs, targets)
    assert torch.isfinite(loss_B).all()
    assert torch.isfinite(gradient(loss_B, moved(term, outputs))).all()


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_stays_finite_where_all_samples_look_the_same(term: Term, whose: str) -> None:
    outputs, targets = batch(dtype=torch.float32)
    if whose == "student":
        one = outputs.embedding_BD.detach()[:1].repeat(B, 1).requires_grad_()
        outputs = replace(outputs, embedding_BD=one)
    else:
        one = targets.target_BD[:1].repeat(B, 1)
        targets = replace(targets, target_BD=one, keys_GD=one)
    loss_B = value(term, outputs, targets)
    found = gradient(loss_B, moved(term, outputs))
    assert torch.isfinite(loss_B).all()
    assert torch.isfinite(found).all()
    assert found.abs().max() < 1e4


def test_moves_every_sample(term: Term) -> None:
    outputs, targets = batch()
    found = gradient(value(term, outputs, targets), moved(term, outputs))
    assert torch.isfinite(found).all()
    assert (found.abs().sum(dim=1) > 0).all()


def test_says_truly_whether_it_has_a_gradient_into_the_embedding(term: Term) -> None:
    outputs, targets = batch()
    value(term, outputs, targets).sum().backward()
    reached = outputs.embedding_BD.grad is not None
    assert reached == LOSSES[term.name].uses_embedding
    assert (outputs.features_BF.grad is None) == reached


def test_has_the_gradient_that_differences_show(term: Term) -> None:
    outputs, targets = batch(4)
    loss = built(term)
    name = "embedding_BD" if LOSSES[term.name].uses_embedding else "features_BF"

    def of(x: Tensor) -> Tensor:
        return loss(replace(outputs, **{name: x}), targets, term.spec)

    assert torch.autograd.gradcheck(of, moved(term, outputs))


def test_changes_no_target_and_sends_no_gradient_to_one(term: Term) -> None:
    outputs, targets = batch()
    names = ("target_BD", "anchors_AD", "keys_GD", "bank_MD")
    wanting = {name: getattr(targets, name).clone().requires_grad_() for name in names}
    before = {name: tensor.detach().clone() for name, tensor in wanting.items()}
    others = further_teachers()
    for other in others:
        other.target_BD.requires_grad_()
        other.anchors_AD.requires_grad_()
    value(term, outputs, replace(targets, others=others, **wanting)).sum().backward()
    for name, tensor in wanting.items():
        assert torch.equal(tensor, before[name]), name
        assert tensor.grad is None, name
    assert all(other.target_BD.grad is other.anchors_AD.grad is None for other in others)


def test_gives_the_same_bits_again(term: Term) -> None:
    found = []
    for _ in range(2):
        outputs, targets = batch(dtype=torch.float32)
        loss_B = value(term, outputs, targets)
        found.append((loss_B.detach(), gradient(loss_B, moved(term, outputs))))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "term", [term for term in every_term() if term.name not in OF_THE_BATCH], ids=lambda t: t.name
)
def test_of_a_sample_does_not_depend_on_the_others(term: Term) -> None:
    """But on the targets of the step, which stay whole when a batch is cut into parts."""
    outputs, targets = batch()
    loss_B = value(term, outputs, targets)
    for i in range(B):
        one = slice(i, i + 1)
        alone = StudentOutputs(outputs.features_BF[one], outputs.embedding_BD[one])
        its_own = replace(
            targets,
            target_BD=targets.target_BD[one],
            rows_B=targets.rows_B[one],
            labels_B=targets.labels_B[one],
            first=i,
        )
        torch.testing.assert_close(value(term, alone, its_own), loss_B[one], rtol=0, atol=1e-12)


def test_does_not_depend_on_the_order_of_a_batch(term: Term) -> None:
    outputs, targets = batch()
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    turned = value(
        term,
        StudentOutputs(outputs.features_BF[order], outputs.embedding_BD[order]),
        replace(
            targets,
            target_BD=targets.target_BD[order],
            rows_B=targets.rows_B[order],
            labels_B=targets.labels_B[order],
            keys_GD=targets.keys_GD[order],
        ),
    )
    expected_B = value(term, outputs, targets)[order]
    torch.testing.assert_close(turned, expected_B, rtol=0, atol=1e-12)


def test_looks_at_the_first_teacher_alone_or_at_the_mean_of_their_p(term: Term) -> None:
    outputs, targets = batch()
    alone_B = value(term, outputs, targets)
    with_others_B = value(term, outputs, replace(targets, others=further_teachers()))
    assert torch.equal(alone_B, with_others_B) == (term.name not in {"csm_ce", "kd"})


@pytest.mark.parametrize("half", HALVES)
def test_computes_in_float32_under_autocast(term: Term, half: torch.dtype) -> None:
    outputs, targets = batch(dtype=torch.float32)
    targets = replace(targets, others=further_teachers(torch.float32))
    plain_B = value(term, outputs, targets)
    with torch.autocast("cpu", dtype=half):
        loss_B = value(term, outputs, targets)
    assert loss_B.dtype == torch.float32
    assert torch.equal(loss_B, plain_B)
    found, plain = (gradient(x_B, moved(term, outputs)) for x_B in (loss_B, plain_B))
    assert torch.equal(found, plain)


@pytest.mark.parametrize("half", HALVES)
def test_computes_in_float32_from_what_a_student_says_in_half_precision(
    term: Term, half: torch.dtype
) -> None:
    outputs, targets = batch(dtype=torch.float32)
    halved, widened = (
        StudentOutputs(
            features_BF=outputs.features_BF.detach().to(half).to(dtype).requires_grad_(),
            embedding_BD=outputs.embedding_BD.detach().to(half).to(dtype).requires_grad_(),
        )
        for dtype in (half, torch.float32)
    )
    loss = built(term, torch.float32)
    with torch.autocast("cpu", dtype=half):
        loss_B = loss(halved, targets, term.spec)
    assert loss_B.dtype == torch.float32
    assert torch.equal(loss_B, loss(widened, targets, term.spec))


def test_is_worked_out_without_a_gradient_too(term: Term) -> None:
    outputs, targets = batch()
    expected_B = value(term, outputs, targets).detach()
    with torch.inference_mode():
        assert torch.equal(value(term, outputs, targets), expected_B)


def test_has_a_weight_of_one_unless_the_recipe_says_another(term: Term) -> None:
    assert term.spec.weight == 1


def test_a_negative_weight_is_refused(term: Term) -> None:
    with pytest.raises(RecipeError, match=r"losses\.\w+:\n.*weight is at least 0, not -1"):
        parse_terms({term.name: {"weight": -1}}, where="test")


def test_weight_zero_switches_it_off(term: Term) -> None:
    other = "mse" if term.name == "ism" else "ism"
    terms = parse_terms({term.name: {"weight": 0}, other: {"weight": 10}}, where="test")
    assert [(found.name, found.spec.weight) for found in terms] == [(other, 10)]


def test_a_loss_with_parameters_is_a_module_and_only_such_a_one(term: Term) -> None:
    loss = built(term)
    assert isinstance(loss, nn.Module) == (term.name == "supervised")
    if isinstance(loss, nn.Module):
        assert list(loss.parameters())


def test_options_are_frozen(term: Term) -> None:
    with pytest.raises(AttributeError):
        term.spec.weight = 2.0
