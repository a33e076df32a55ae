"""Similarities are in float32 under any autocast."""

import pytest
import torch

from pipeline.losses.similarity import dots, logits, wide
from tests.losses.samples import rows


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_half_is_widened_and_float64_stays(half: torch.dtype) -> None:
    assert wide(torch.ones(1, dtype=half)).dtype == torch.float32
    assert wide(torch.ones(1)).dtype == torch.float32
    assert wide(torch.ones(1, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_would_cost_logits_most_of_their_digits(half: torch.dtype) -> None:
    x_BD, y_ND = rows(7, 0, torch.float32), rows(9, 1, torch.float32)
    exact = x_BD.double() @ y_ND.double().T / 0.01
    with torch.autocast("cpu", dtype=half):
        lost = (x_BD @ y_ND.T).float() / 0.01
        found = logits(x_BD, y_ND, 0.01)
    assert (lost - exact).abs().max() > 0.01
    assert (found - exact).abs().max() < 1e-4


def test_the_gradient_reaches_the_first_alone() -> None:
    x_BD, y_ND = rows(7, 0).requires_grad_(), rows(9, 1).requires_grad_()
    logits(x_BD, y_ND, 0.1).sum().backward()
    assert x_BD.grad is not None
    assert y_ND.grad is None
    dots(x_BD, y_ND).sum().backward()
    assert y_ND.grad is not None
