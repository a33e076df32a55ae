"""What every entry of LOSSES promises."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn

from pipeline.contracts import Branch, StudentOutputs
from pipeline.errors import RecipeError
from pipeline.losses import LOSSES, Term, parse_terms
from tests.losses.samples import (
    A,
    B,
    batch,
    built,
    chosen,
    every_term,
    further_teachers,
    part_of,
    value,
)

HALVES = (torch.bfloat16, torch.float16)
# These compare the samples of a batch with each other.
OF_THE_BATCH = {"rkd", "itc"}


@pytest.fixture(params=every_term(), ids=lambda term: term.name)
def term(request: pytest.FixtureRequest) -> Term:
    term: Term = request.param
    return term


def moved(term: Term, outputs: StudentOutputs) -> tuple[Tensor, ...]:
    """Return what a loss pushes: the embedding, the features where it stops at them, or what is
    said of images and of texts.
    """
    if LOSSES[term.name].pairs:
        assert outputs.image is not None
        assert outputs.text is not None
        return outputs.image.output_BE, outputs.text.output_BE
    uses_embedding = LOSSES[term.name].uses_embedding
    return (outputs.embedding_BD if uses_embedding else outputs.features_BF,)


def with_moved(term: Term, outputs: StudentOutputs, *x: Tensor) -> StudentOutputs:
    """Return the outputs with other values of what a loss pushes."""
    if LOSSES[term.name].pairs:
        assert outputs.image is not None
        assert outputs.text is not None
        image = replace(outputs.image, output_BE=x[0])
        return replace(outputs, image=image, text=replace(outputs.text, output_BE=x[1]))
    name = "embedding_BD" if LOSSES[term.name].uses_embedding else "features_BF"
    return replace(outputs, **{name: x[0]})


def gradient(loss_B: Tensor, of: tuple[Tensor, ...]) -> Tensor:
    """Return the gradients of what a loss pushes, one after another."""
    return torch.cat(torch.autograd.grad(loss_B.sum(), of))


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
    empty = replace(targets, bank_MD=targets.bank_MD[:0], bank_rows_M=targets.bank_rows_M[:0])
    loss_B = value(term, outputs, empty)
    assert torch.isfinite(loss_B).all()
    assert torch.isfinite(gradient(loss_B, moved(term, outputs))).all()


def test_stays_finite_at_the_sharpest_tau_and_for_opposite_vectors(term: Term) -> None:
    outputs, targets = batch(dtype=torch.float32)
    assert outputs.image is not None
    opposite_BE = -outputs.image.output_BE.detach()
    outputs = replace(
        outputs,
        features_BF=torch.full((B, 5), 1e4).requires_grad_(),
        embedding_BD=(-targets.target_BD).requires_grad_(),
        text=replace(outputs.image, output_BE=opposite_BE.requires_grad_()),
    )
    taus = {f.name: 1e-3 for f in fields(term.spec) if f.name.startswith("tau")}
    loss_B = value(Term(term.name, replace(term.spec, **taus)), outputs, targets)
    assert torch.isfinite(loss_B).all()
    assert torch.isfinite(gradient(loss_B, moved(term, outputs))).all()


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_stays_finite_where_all_samples_look_the_same(term: Term, whose: str) -> None:
    outputs, targets = batch(dtype=torch.float32)
    if whose == "student":
        ones = (x.detach()[:1].repeat(B, 1).requires_grad_() for x in moved(term, outputs))
        outputs = with_moved(term, outputs, *ones)
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
    entry = LOSSES[term.name]
    assert reached == (entry.uses_embedding and not entry.pairs)
    assert (outputs.features_BF.grad is None) == (reached or entry.pairs)
    assert all(x.grad is not None for x in moved(term, outputs))


def test_has_the_gradient_that_differences_show(term: Term) -> None:
    outputs, targets = batch(4)
    loss = built(term)

    def of(*x: Tensor) -> Tensor:
        return loss(with_moved(term, outputs, *x), targets, term.spec)

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
        alone_B = value(term, *part_of(outputs, targets, one))
        torch.testing.assert_close(alone_B, loss_B[one], rtol=0, atol=1e-12)


def test_does_not_depend_on_the_order_of_a_batch(term: Term) -> None:
    outputs, targets = batch()
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    turned = value(
        term,
        chosen(outputs, order),
        replace(
            targets,
            target_BD=targets.target_BD[order],
            rows_B=targets.rows_B[order],
            labels_B=targets.labels_B[order],
            keys_GD=targets.keys_GD[order],
            key_rows_G=targets.key_rows_G[order],
            norms_B=targets.norms_B[order],
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
    halved, widened = (rounded(outputs, half, dtype) for dtype in (half, torch.float32))
    loss = built(term, torch.float32)
    with torch.autocast("cpu", dtype=half):
        loss_B = loss(halved, targets, term.spec)
    assert loss_B.dtype == torch.float32
    assert torch.equal(loss_B, loss(widened, targets, term.spec))


def rounded(outputs: StudentOutputs, half: torch.dtype, dtype: torch.dtype) -> StudentOutputs:
    """Return what a student says with a half's digits."""

    def of(x: Tensor) -> Tensor:
        return x.detach().to(half).to(dtype).requires_grad_()

    assert outputs.image is not None
    assert outputs.text is not None
    image, text = (
        Branch(of(it.output_BE), of(it.inner_BI)) for it in (outputs.image, outputs.text)
    )
    return StudentOutputs(of(outputs.features_BF), of(outputs.embedding_BD), image=image, text=text)


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
    assert isinstance(loss, nn.Module) == (term.name == "supervised" or LOSSES[term.name].pairs)
    if isinstance(loss, nn.Module):
        assert list(loss.parameters())


def test_options_are_frozen(term: Term) -> None:
    with pytest.raises(AttributeError):
        term.spec.weight = 2.0
