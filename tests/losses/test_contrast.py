"""A softmax over similarities, on a scale that is learned within bounds."""

import math

import pytest
import torch

from pipeline.losses.contrast import Scales, contrast, normalised, twins
from tests.losses.samples import B, D, rows


def test_scales_begin_at_one_over_seven_hundredths() -> None:
    torch.testing.assert_close(Scales(2)(), torch.full((2,), 1 / 0.07))


@pytest.mark.parametrize(("log", "bound"), [(-3.0, 1.0), (9.0, 100.0)])
def test_a_scale_beyond_its_bounds_is_put_on_them_and_finds_its_way_back(
    log: float, bound: float
) -> None:
    scales = Scales()
    with torch.no_grad():
        scales.logs.fill_(log)
    scale = scales()
    assert scale.item() == pytest.approx(bound)
    assert scales.logs.item() == pytest.approx(math.log(bound))
    scale.sum().backward()
    assert scales.logs.grad is not None
    assert scales.logs.grad.item() == pytest.approx(bound)


def test_a_scale_that_is_pushed_up_for_long_stays_within_its_bounds() -> None:
    scales = Scales()
    optimizer = torch.optim.SGD(scales.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        (-scales()).sum().backward()
        optimizer.step()
    assert scales().item() == pytest.approx(100)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_normalised_rows_of_a_half_are_of_norm_one_in_float32(half: torch.dtype) -> None:
    found = normalised((7 * rows(B, 0, torch.float32)).to(half))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(B))


def test_twins_are_of_the_same_row_and_not_ones_own() -> None:
    found = twins(torch.tensor([5, 5, 8]), torch.tensor([8, 5, 5, 8, 5]), torch.tensor([1, 2, 3]))
    assert found.tolist() == [
        [False, False, True, False, True],
        [False, True, False, False, True],
        [True, False, False, False, False],
    ]


def test_is_the_cross_entropy_of_finding_ones_own_among_what_is_not_left_out() -> None:
    x_BD, y_ND = rows(B, 0), rows(12, 1)
    own_B = torch.arange(B) + 2
    left_out_BN = torch.rand(B, 12, generator=torch.Generator().manual_seed(0)) < 0.4
    left_out_BN[torch.arange(B), own_B] = False
    expected = []
    for i in range(B):
        terms = [
            math.exp(20 * float(x_BD[i] @ y_ND[j])) for j in range(12) if not left_out_BN[i, j]
        ]
        expected.append(math.log(sum(terms)) - 20 * float(x_BD[i] @ y_ND[i + 2]))
    found_B = contrast(x_BD, y_ND, torch.tensor(20.0), own_B, left_out_BN)
    torch.testing.assert_close(found_B, torch.tensor(expected, dtype=torch.float64))
    assert x_BD.shape == (B, D)


def test_where_all_others_are_left_out_ones_own_is_found_for_nothing() -> None:
    x_BD = rows(B, 0).requires_grad_()
    left_out_BN = ~torch.eye(B, dtype=torch.bool)
    loss_B = contrast(x_BD, rows(B, 1), torch.tensor(20.0), torch.arange(B), left_out_BN)
    (found,) = torch.autograd.grad(loss_B.sum(), x_BD)
    assert loss_B.abs().max() == 0
    assert found.abs().max() == 0
