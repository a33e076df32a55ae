"""Images and texts find each other among all in flight."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from open_clip.loss import ClipLoss
from torch import Tensor
from torch.nn import functional as F

from pipeline.contracts import Branch, StudentOutputs, TargetBatch
from pipeline.losses.pairs import Itc, ItcOptions, Level
from tests.losses.samples import DTYPES, SIZES, B, batch, part_of, rows

# Five captions of the first image, and two of another.
ROWS = torch.tensor([3, 3, 3, 3, 3, 8, 8])


def itc(
    outputs: StudentOutputs,
    targets: TargetBatch,
    *,
    scales: tuple[float, float] = (1 / 0.07, 1 / 0.07),
    **fields: Any,
) -> Tensor:
    loss = Itc(SIZES).to(outputs.embedding_BD.dtype)
    with torch.no_grad():
        loss.scales.logs.copy_(torch.tensor(scales, dtype=torch.float64).log())
    found: Tensor = loss(outputs, targets, ItcOptions(**fields))
    return found


def branches(outputs: StudentOutputs) -> tuple[Branch, Branch]:
    assert outputs.image is not None
    assert outputs.text is not None
    return outputs.image, outputs.text


def level_of(outputs: StudentOutputs, level: Level) -> tuple[Tensor, Tensor]:
    """Return the normalised vectors of images and of texts."""
    image, text = (
        F.normalize(it.output_BE if level == "output" else it.inner_BI, dim=1)
        for it in branches(outputs)
    )
    return image, text


def in_loops(
    outputs: StudentOutputs, row_B: Tensor, level: Level, scale: float, *, mask: bool
) -> Tensor:
    """Return the loss in plain loops over samples, float64 [B]."""
    image_BE, text_BE = (x.detach() for x in level_of(outputs, level))
    values = []
    for i in range(len(row_B)):
        kept = [j for j in range(len(row_B)) if j == i or not mask or row_B[j] != row_B[i]]
        for one_E, others_BE in ((image_BE[i], text_BE), (text_BE[i], image_BE)):
            terms = [math.exp(scale * float(one_E @ others_BE[j])) for j in kept]
            values.append(math.log(sum(terms)) - scale * float(one_E @ others_BE[i]))
    return torch.tensor(values, dtype=torch.float64).view(-1, 2).mean(dim=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", ["output", "inner"])
def test_is_open_clips_loss_where_no_image_comes_twice(level: Level, dtype: torch.dtype) -> None:
    outputs, targets = batch(dtype=dtype)
    expected = ClipLoss()(*level_of(outputs, level), logit_scale=1 / 0.07)
    found = itc(outputs, targets, levels=(level,)).mean()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    image, text = branches(outputs)
    of = [x for it in (image, text) for x in (it.output_BE, it.inner_BI)]
    one, other = (torch.autograd.grad(x, of, allow_unused=True) for x in (found, expected))
    for grad, wanted in zip(one, other, strict=True):
        assert (grad is None) == (wanted is None)
        if grad is not None:
            torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-6)


def test_without_a_mask_is_open_clips_loss_whatever_the_rows() -> None:
    outputs, targets = batch()
    expected = ClipLoss()(*level_of(outputs, "output"), logit_scale=1 / 0.07)
    found = itc(outputs, replace(targets, key_rows_G=ROWS), mask_same_image=False).mean()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mask", [True, False])
def test_is_what_its_equation_says_in_plain_loops(mask: bool) -> None:
    outputs, targets = batch()
    loss_B = itc(outputs, replace(targets, key_rows_G=ROWS), mask_same_image=mask)
    expected_B = in_loops(outputs, ROWS, "output", 1 / 0.07, mask=mask)
    torch.testing.assert_close(loss_B, expected_B, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mask", [True, False])
def test_captions_of_one_image_push_each_other_away_only_without_the_mask(mask: bool) -> None:
    """A negative's gradient: does the first sample's loss reach what is said of the others?"""
    outputs, targets = batch()
    loss_B = itc(outputs, replace(targets, key_rows_G=ROWS), mask_same_image=mask)
    for branch in branches(outputs):
        (found,) = torch.autograd.grad(loss_B[0], branch.output_BE, retain_graph=True)
        reached_B = found.abs().sum(dim=1) > 0
        assert reached_B.tolist() == [True, *[not mask] * 4, True, True]


def test_levels_are_averaged_each_on_its_own_scale() -> None:
    outputs, targets = batch()
    both_B = itc(outputs, targets, scales=(5, 30), levels=("output", "inner"))
    expected = [
        in_loops(outputs, targets.rows_B, level, scale, mask=True)
        for level, scale in (("output", 5), ("inner", 30))
    ]
    torch.testing.assert_close(both_B, torch.stack(expected).mean(dim=0))
    turned_B = itc(outputs, targets, scales=(5, 30), levels=("inner", "output"))
    torch.testing.assert_close(turned_B, both_B)


def test_the_scale_of_a_level_that_is_left_out_stays() -> None:
    """All parameters have a gradient, as DDP wants; that of what is left out is 0."""
    outputs, targets = batch(dtype=torch.float32)
    loss = Itc(SIZES)
    loss(outputs, targets, ItcOptions()).mean().backward()
    gradient = loss.scales.logs.grad
    assert gradient is not None
    assert gradient[0] != 0
    assert gradient[1] == 0


def test_does_not_depend_on_the_length_of_what_a_student_says() -> None:
    outputs, targets = batch()
    image, text = branches(outputs)
    longer = replace(
        outputs,
        image=replace(image, output_BE=9 * image.output_BE),
        text=replace(text, output_BE=text.output_BE / 7),
    )
    torch.testing.assert_close(itc(longer, targets), itc(outputs, targets))


def test_a_part_of_a_step_knows_the_rows_of_its_own_samples() -> None:
    """Of a step in two parts, the second one's images are those from `first` on."""
    outputs, targets = batch()
    targets = replace(targets, key_rows_G=torch.tensor([0, 1, 2, 5, 5, 6, 6]))
    part, its_own = part_of(outputs, targets, slice(3, B))
    expected_B = in_loops(part, torch.tensor([5, 5, 6, 6]), "output", 1 / 0.07, mask=True)
    torch.testing.assert_close(itc(part, its_own), expected_B)


def test_looks_at_no_target() -> None:
    outputs, targets = batch()
    other = replace(targets, target_BD=rows(B, 50), keys_GD=rows(B, 50), bank_MD=rows(3, 51))
    assert torch.equal(itc(outputs, targets), itc(outputs, other))
