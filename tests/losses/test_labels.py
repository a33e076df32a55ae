"""The supervised loss is torch's, over the samples that have a label."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.errors import RecipeError
from pipeline.losses import LossSum
from pipeline.losses.labels import Supervised, SupervisedOptions
from tests.losses.samples import DTYPES, NUM_FEATURES, SIZES, B, C, batch, built, term_of, value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_is_torchs_cross_entropy_of_a_linear_head(smoothing: float, dtype: torch.dtype) -> None:
    outputs, targets = batch(dtype=dtype)
    term = term_of("supervised", label_smoothing=smoothing)
    head: Any = built(term, dtype)
    weight_CF, bias_C = head.head.weight, head.head.bias
    assert weight_CF.shape == (C, NUM_FEATURES)
    logits_BC = outputs.features_BF @ weight_CF.T + bias_C
    expected_B = -logits_BC.log_softmax(dim=1)[torch.arange(B), targets.labels_B]
    if smoothing:
        spread_B = -logits_BC.log_softmax(dim=1).mean(dim=1)
        expected_B = (1 - smoothing) * expected_B + smoothing * spread_B
    loss_B = value(term, outputs, targets)
    torch.testing.assert_close(loss_B, expected_B, rtol=1e-6, atol=1e-6)
    torch_B = F.cross_entropy(
        logits_BC, targets.labels_B, reduction="none", label_smoothing=smoothing
    )
    torch.testing.assert_close(loss_B, torch_B, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_samples_without_a_label_give_nothing_and_are_not_counted(smoothing: float) -> None:
    outputs, targets = batch(dtype=torch.float32)
    labels_B = targets.labels_B.clone()
    labels_B[[1, 4]] = -1
    term = term_of("supervised", label_smoothing=smoothing)
    loss_B = value(term, outputs, replace(targets, labels_B=labels_B))
    assert (loss_B[[1, 4]] == 0).all()
    known = labels_B >= 0
    assert torch.equal(loss_B[known], value(term, outputs, targets)[known])
    torch.manual_seed(0)
    total = LossSum([term], SIZES)
    loss, means = total(outputs, replace(targets, labels_B=labels_B))
    torch.testing.assert_close(loss, loss_B.sum() / 5)
    assert means["supervised"] == loss
    (gradient_BF,) = torch.autograd.grad(loss, outputs.features_BF)
    assert (gradient_BF[~known] == 0).all()
    assert (gradient_BF[known] != 0).any(dim=1).all()


def test_a_batch_without_labels_is_nothing_to_learn_from() -> None:
    outputs, targets = batch(dtype=torch.float32)
    total = LossSum([term_of("supervised")], SIZES)
    loss, _ = total(outputs, replace(targets, labels_B=torch.full((B,), -1)))
    loss.backward()
    assert loss == 0
    assert all(not p.grad.any() for p in total.parameters() if p.grad is not None)
    assert outputs.features_BF.grad is not None
    assert not outputs.features_BF.grad.any()


def test_data_without_labels_are_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"losses\.supervised needs labels, and no .* has one"):
        LossSum([term_of("ism"), term_of("supervised")], replace(SIZES, num_classes=0))


def test_its_head_moves_with_the_features_and_comes_back_from_a_checkpoint() -> None:
    outputs, targets = batch(dtype=torch.float32)
    head = built(term_of("supervised"), torch.float32)
    assert isinstance(head, Supervised)
    head(outputs, targets, SupervisedOptions()).mean().backward()
    assert head.head.weight.grad is not None
    assert head.head.bias.grad is not None
    nn.init.zeros_(head.head.weight)
    other = Supervised(SIZES)
    other.load_state_dict(head.state_dict())
    assert torch.equal(
        other(outputs, targets, SupervisedOptions()), head(outputs, targets, SupervisedOptions())
    )
