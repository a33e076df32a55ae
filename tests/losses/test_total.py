"""The sum of a recipe's losses is what a step minimises."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.errors import StudentError
from pipeline.losses import LOSSES, LossSum, Sizes, Term
from tests.losses.samples import (
    NUM_FEATURES,
    SIZES,
    B,
    C,
    batch,
    built,
    every_term,
    part_of,
    term_of,
    value,
)


def total(*terms: Term, seed: int = 0, sizes: Sizes = SIZES) -> LossSum:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LossSum(terms, sizes)


def test_is_the_weighted_sum_of_the_means_of_all_losses() -> None:
    outputs, targets = batch(dtype=torch.float32)
    terms = [term_of(name, weight=float(i + 1)) for i, name in enumerate(LOSSES)]
    owner = total(*terms)
    loss, means = owner(outputs, targets)
    losses = {t.name: owner.own[t.name] if t.name in owner.own else built(t) for t in terms}
    expected = {t.name: losses[t.name](outputs, targets, t.spec).mean() for t in terms}
    assert means.keys() == expected.keys()
    for name, mean in means.items():
        torch.testing.assert_close(mean, expected[name])
        assert not mean.requires_grad
    by_hand = sum(term.spec.weight * expected[term.name] for term in terms)
    torch.testing.assert_close(loss, torch.as_tensor(by_hand))
    assert loss.shape == ()
    assert loss.dtype == torch.float32


def test_has_the_gradient_of_that_sum() -> None:
    outputs, targets = batch(dtype=torch.float32)
    terms = [term_of("csm_ce"), term_of("entmin"), term_of("ism", weight=10)]
    loss, _ = total(*terms)(outputs, targets)
    (found,) = torch.autograd.grad(loss, outputs.embedding_BD)
    by_hand = sum(term.spec.weight * value(term, outputs, targets).mean() for term in terms)
    (expected,) = torch.autograd.grad(torch.as_tensor(by_hand), outputs.embedding_BD)
    torch.testing.assert_close(found, expected)


def test_the_means_keep_the_order_of_the_recipe() -> None:
    terms = [term_of(name) for name in ("rkd", "ism", "crd")]
    _, means = total(*terms)(*batch(dtype=torch.float32))
    assert list(means) == ["rkd", "ism", "crd"]


@pytest.mark.parametrize(
    ("losses", "bank"),
    [
        ({"ism": {}, "csm_ce": {}}, 0),
        ({"crd": {}}, 0),
        ({"crd": {"bank": 5}, "ism": {}}, 5),
        ({"crd": {"bank": 5}, "seed": {"bank": 3}}, 5),
        ({"seed": {}}, 65536),
        ({"kd_bank": {}, "itc": {}}, 65536),
        ({"kd_inbatch": {}, "itc": {}}, 0),
    ],
)
def test_asks_for_the_largest_bank_of_its_terms(losses: dict[str, Any], bank: int) -> None:
    assert total(*(term_of(name, **fields) for name, fields in losses.items())).bank == bank


def test_says_whether_the_embedding_learns() -> None:
    assert not total(term_of("supervised")).uses_embedding
    assert total(term_of("supervised"), term_of("ism")).uses_embedding
    for term in every_term():
        assert total(term).uses_embedding == (term.name != "supervised")


def test_says_whether_it_is_of_images_and_texts() -> None:
    of_pairs = {term.name for term in every_term() if total(term).pairs}
    assert of_pairs == {"itc", "kd_bank", "kd_inbatch", "kd_mse", "kd_kl"}
    assert total(term_of("ism"), term_of("itc")).pairs
    assert not total(term_of("ism"), term_of("crd")).pairs


@pytest.mark.parametrize("name", ["itc", "kd_bank", "kd_inbatch", "kd_mse", "kd_kl"])
def test_a_student_of_images_alone_learns_nothing_from_pairs(name: str) -> None:
    alone = replace(SIZES, width=0)
    with pytest.raises(StudentError, match=rf"losses\.{name} needs a student that reads texts"):
        total(term_of(name), sizes=alone)


@pytest.mark.parametrize("name", ["itc", "kd_bank", "kd_inbatch", "kd_mse", "kd_kl"])
@pytest.mark.parametrize("missing", ["image", "text"])
def test_without_captions_a_loss_of_pairs_says_what_it_needs(name: str, missing: str) -> None:
    outputs, targets = batch(dtype=torch.float32)
    without = replace(outputs, **{missing: None})
    with pytest.raises(StudentError, match=r"needs a student that reads texts, and captions"):
        total(term_of(name))(without, targets)


class TestParameters:
    def test_are_those_of_its_losses_alone(self) -> None:
        assert not list(total(term_of("ism"), term_of("csm_ce")).parameters())
        owner = total(term_of("ism"), term_of("supervised"))
        assert {name: tuple(value.shape) for name, value in owner.state_dict().items()} == {
            "own.supervised.head.weight": (C, NUM_FEATURES),
            "own.supervised.head.bias": (C,),
        }

    def test_are_drawn_from_the_global_generator(self) -> None:
        one, same, other = (total(term_of("supervised"), seed=seed) for seed in (1, 1, 2))
        for name, drawn in one.state_dict().items():
            assert torch.equal(drawn, same.state_dict()[name])
            assert not torch.equal(drawn, other.state_dict()[name])

    def test_are_what_an_optimiser_moves_and_a_checkpoint_brings_back(self) -> None:
        outputs, targets = batch(dtype=torch.float32)
        owner = total(term_of("supervised"), term_of("ism"))
        optimizer = torch.optim.SGD(owner.parameters(), lr=1.0)
        before, _ = owner(outputs, targets)
        before.backward()
        optimizer.step()
        after, _ = owner(outputs, targets)
        assert after < before
        again = total(term_of("supervised"), term_of("ism"), seed=3)
        again.load_state_dict(owner.state_dict())
        assert torch.equal(again(outputs, targets)[0], after)

    def test_move_to_another_dtype_with_it(self) -> None:
        outputs, targets = batch()
        owner = total(term_of("supervised")).double()
        loss, _ = owner(outputs, targets)
        assert loss.dtype == torch.float64

    def test_are_registered_once(self) -> None:
        owner = total(term_of("supervised"))
        assert sum(isinstance(module, nn.Linear) for module in owner.modules()) == 1
        assert len(list(owner.parameters())) == 2


def test_a_sum_over_parts_of_a_batch_is_the_whole() -> None:
    """Gradient accumulation: equal parts, each loss divided by their number."""
    outputs, targets = batch(B - 1, dtype=torch.float32)
    names = [name for name in LOSSES if name not in {"rkd", "supervised", "itc"}]
    owner = total(*(term_of(name) for name in names))
    whole, _ = owner(outputs, targets)
    half = (B - 1) // 2
    losses = [
        owner(*part_of(outputs, targets, slice(first, first + half)))[0] for first in (0, half)
    ]
    torch.testing.assert_close(torch.stack(losses).mean(), whole)
