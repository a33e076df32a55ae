"""Through a head, images and texts are brought to the image teacher's target."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.contracts import Branch, StudentOutputs, TargetBatch
from pipeline.errors import RecipeError
from tests.losses.samples import (
    DTYPES,
    SIZES,
    WIDTH,
    B,
    D,
    M,
    batch,
    built,
    part_of,
    rows,
    term_of,
    value,
)

NAMES = ("kd_bank", "kd_inbatch", "kd_mse", "kd_kl")


def branches(outputs: StudentOutputs) -> tuple[Branch, Branch]:
    assert outputs.image is not None
    assert outputs.text is not None
    return outputs.image, outputs.text


def swapped(outputs: StudentOutputs) -> StudentOutputs:
    return replace(outputs, image=outputs.text, text=outputs.image)


def with_same(outputs: StudentOutputs, output_BE: Tensor) -> StudentOutputs:
    """Return outputs that say the same of images and texts."""
    image, text = (replace(it, output_BE=output_BE) for it in branches(outputs))
    return replace(outputs, image=image, text=text)


def head_of(loss: Any) -> Callable[[Tensor], Tensor]:
    """Return the head of a loss, spelled out: layer norm, then a linear map."""
    norm, linear = loss.head.norm, loss.head.linear

    def head(x_BE: Tensor) -> Tensor:
        centred_BE = x_BE - x_BE.mean(dim=1, keepdim=True)
        scaled_BE = centred_BE / (centred_BE.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
        return (norm.weight * scaled_BE + norm.bias) @ linear.weight.T + linear.bias

    return head


def raw(targets: TargetBatch) -> Tensor:
    return targets.norms_B[:, None] * targets.target_BD


@pytest.mark.parametrize("name", NAMES)
class TestEach:
    def test_reaches_all_of_its_parameters_and_both_branches(self, name: str) -> None:
        """DDP waits for a gradient of each parameter."""
        outputs, targets = batch(dtype=torch.float32)
        loss: Any = built(term_of(name), torch.float32)
        loss(outputs, targets, term_of(name).spec).mean().backward()
        parameters = dict(loss.named_parameters())
        assert tuple(parameters["head.linear.weight"].shape) == (D, WIDTH)
        assert ("scale.logs" in parameters) == (name in {"kd_bank", "kd_inbatch"})
        for label, parameter in parameters.items():
            assert parameter.grad is not None, label
            assert parameter.grad.abs().max() > 0, label
        for branch in branches(outputs):
            assert branch.output_BE.grad is not None
            assert (branch.output_BE.grad.abs().sum(dim=1) > 0).all()
            assert branch.inner_BI.grad is None

    def test_halves_are_alike_and_averaged(self, name: str) -> None:
        outputs, targets = batch()
        image, text = branches(outputs)
        term = term_of(name)
        whole_B = value(term, outputs, targets)
        parts = [value(term, with_same(outputs, it.output_BE), targets) for it in (image, text)]
        torch.testing.assert_close(whole_B, torch.stack(parts).mean(dim=0))
        torch.testing.assert_close(value(term, swapped(outputs), targets), whole_B)

    def test_a_text_is_held_against_the_target_of_its_own_image(self, name: str) -> None:
        """Which text is whose counts: turned around, each is at another sample's target."""
        outputs, targets = batch()
        _, text = branches(outputs)
        turned = replace(outputs, text=replace(text, output_BE=text.output_BE.flip(0)))
        term = term_of(name)
        assert (value(term, turned, targets) - value(term, outputs, targets)).abs().max() > 0.01
        # The middle one of an odd number stays where it is.
        one, other = value(term, turned, targets)[B // 2], value(term, outputs, targets)[B // 2]
        torch.testing.assert_close(one, other)


class TestKdBank:
    def in_loops(
        self, outputs: StudentOutputs, targets: TargetBatch, bank: int, *, mask: bool
    ) -> Tensor:
        loss: Any = built(term_of("kd_bank"))
        scale, head = 1 / 0.07, head_of(loss)
        keys = [*zip(targets.keys_GD, targets.key_rows_G.tolist(), strict=True)]
        held = [*zip(targets.bank_MD, targets.bank_rows_M.tolist(), strict=True)]
        keys += held[len(held) - min(bank, len(held)) :]
        values = []
        for i in range(len(outputs.embedding_BD)):
            own = targets.first + i
            for branch in branches(outputs):
                z_D = F.normalize(head(branch.output_BE), dim=1)[i].detach()
                terms = [
                    math.exp(scale * float(z_D @ key_D))
                    for j, (key_D, row) in enumerate(keys)
                    if j == own or not mask or row != targets.key_rows_G[own]
                ]
                values.append(math.log(sum(terms)) - scale * float(z_D @ targets.target_BD[i]))
        return torch.tensor(values, dtype=torch.float64).view(-1, 2).mean(dim=1)

    def samples(self) -> tuple[StudentOutputs, TargetBatch]:
        """Return the second share of a step in which images come twice, in step and bank."""
        outputs, targets = batch()
        keys_GD = torch.cat([rows(4, 5), targets.target_BD, rows(2, 6)])
        key_rows_G = torch.tensor([1, 2, 3, 4, 2, 50, 50, 60, 70, 80, 90, 60, 91])
        bank_rows_M = torch.tensor([50, 51, 52, 60, 54, 55, 50, 2, 58])
        return outputs, replace(
            targets, keys_GD=keys_GD, key_rows_G=key_rows_G, bank_rows_M=bank_rows_M, first=4
        )

    @pytest.mark.parametrize("mask", [True, False])
    @pytest.mark.parametrize("bank", [0, 4, M, 100])
    def test_is_what_its_equation_says_in_plain_loops(self, bank: int, mask: bool) -> None:
        outputs, targets = self.samples()
        loss_B = value(term_of("kd_bank", bank=bank, mask_same_image=mask), outputs, targets)
        expected_B = self.in_loops(outputs, targets, bank, mask=mask)
        torch.testing.assert_close(loss_B, expected_B, rtol=1e-6, atol=1e-6)

    def test_the_same_image_in_step_or_bank_is_a_negative_only_without_the_mask(self) -> None:
        """Moving the target of a twin moves the loss only if the twin is a negative."""
        outputs, targets = self.samples()
        twin_in_step = targets.keys_GD.clone()
        twin_in_step[1] = -twin_in_step[1]  # of row 2, as the first sample is
        twin_in_bank = targets.bank_MD.clone()
        twin_in_bank[7] = -twin_in_bank[7]
        moved = replace(targets, keys_GD=twin_in_step), replace(targets, bank_MD=twin_in_bank)
        for mask in (True, False):
            term = term_of("kd_bank", mask_same_image=mask)
            before_B = value(term, outputs, targets)
            for other in moved:
                change_B = (value(term, outputs, other) - before_B).abs()
                assert (change_B[0] < 1e-12) == mask
                assert (change_B[1:] > 1e-12).any()  # of other images it is one

    def test_with_an_empty_bank_is_kd_inbatch(self) -> None:
        outputs, targets = self.samples()
        expected_B = value(term_of("kd_inbatch"), outputs, targets)
        assert torch.equal(value(term_of("kd_bank", bank=0), outputs, targets), expected_B)
        empty = replace(targets, bank_MD=targets.bank_MD[:0], bank_rows_M=targets.bank_rows_M[:0])
        assert torch.equal(value(term_of("kd_bank"), outputs, empty), expected_B)
        assert (value(term_of("kd_bank"), outputs, targets) > expected_B).all()

    def test_a_step_in_two_parts_is_the_whole_step(self) -> None:
        outputs, targets = batch()
        whole_B = value(term_of("kd_bank"), outputs, targets)
        parts = [
            value(term_of("kd_bank"), *part_of(outputs, targets, part))
            for part in (slice(0, 3), slice(3, B))
        ]
        torch.testing.assert_close(torch.cat(parts), whole_B)


class TestKdMse:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_is_torchs_mse_from_the_raw_target(self, dtype: torch.dtype) -> None:
        outputs, targets = batch(dtype=dtype)
        head = head_of(built(term_of("kd_mse"), dtype))
        halves = [F.mse_loss(head(it.output_BE), raw(targets)) for it in branches(outputs)]
        found = value(term_of("kd_mse"), outputs, targets).mean()
        torch.testing.assert_close(found, torch.stack(halves).mean(), rtol=1e-5, atol=1e-6)

    def test_is_nothing_at_the_raw_target(self) -> None:
        outputs, targets = batch(1)
        loss: Any = built(term_of("kd_mse"))
        with torch.no_grad():
            loss.head.linear.weight.zero_()
            loss.head.linear.bias.copy_(raw(targets)[0])
        assert loss(outputs, targets, term_of("kd_mse").spec).item() == 0
        longer = replace(targets, norms_B=targets.norms_B + 1)
        found = loss(outputs, longer, term_of("kd_mse").spec)
        assert found.item() == pytest.approx(1 / D)


class TestKdKl:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("T", [1.0, 4.0])
    @pytest.mark.parametrize("top_k", [None, D])
    def test_is_torchs_kl_div(self, top_k: int | None, T: float, dtype: torch.dtype) -> None:
        outputs, targets = batch(dtype=dtype)
        head = head_of(built(term_of("kd_kl"), dtype))
        halves = [
            F.kl_div(
                (head(it.output_BE) / T).log_softmax(dim=1),
                (raw(targets) / T).softmax(dim=1),
                reduction="batchmean",
            )
            for it in branches(outputs)
        ]
        found = value(term_of("kd_kl", T=T, top_k=top_k), outputs, targets).mean()
        expected = T**2 * torch.stack(halves).mean()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("top_k", [1, 5])
    def test_of_the_greatest_classes_is_kl_div_from_them_made_to_sum_to_one(
        self, top_k: int
    ) -> None:
        outputs, targets = batch()
        head = head_of(built(term_of("kd_kl")))
        p_BD = (raw(targets) / 2).softmax(dim=1)
        least_B1 = p_BD.sort(dim=1, descending=True).values[:, top_k - 1 : top_k]
        p_BD = torch.where(p_BD >= least_B1, p_BD, 0)
        p_BD = p_BD / p_BD.sum(dim=1, keepdim=True)
        assert ((p_BD > 0).sum(dim=1) == top_k).all()
        halves = [
            F.kl_div((head(it.output_BE) / 2).log_softmax(dim=1), p_BD, reduction="none").sum(dim=1)
            for it in branches(outputs)
        ]
        found_B = value(term_of("kd_kl", T=2.0, top_k=top_k), outputs, targets)
        torch.testing.assert_close(found_B, 4 * torch.stack(halves).mean(dim=0))

    def test_is_nothing_where_the_head_gives_the_teachers_logits(self) -> None:
        outputs, targets = batch(1)
        loss: Any = built(term_of("kd_kl"))
        with torch.no_grad():
            loss.head.linear.weight.zero_()
            loss.head.linear.bias.copy_(raw(targets)[0] + 3)  # a shift is no other distribution
        assert abs(loss(outputs, targets, term_of("kd_kl").spec).item()) < 1e-12

    def test_is_finite_where_the_teacher_is_sure(self) -> None:
        outputs, targets = batch(dtype=torch.float32)
        sure = replace(targets, norms_B=targets.norms_B * 1e4)
        assert (raw(sure).softmax(dim=1) == 0).any()
        loss_B = value(term_of("kd_kl"), outputs, sure)
        gradients = torch.autograd.grad(loss_B.sum(), [b.output_BE for b in branches(outputs)])
        assert torch.isfinite(loss_B).all()
        assert all(torch.isfinite(x).all() for x in gradients)

    def test_more_classes_than_the_teacher_has_are_refused(self) -> None:
        outputs, targets = batch()
        with pytest.raises(RecipeError, match=f"at most the teacher's {D} classes, not {D + 1}"):
            value(term_of("kd_kl", top_k=D + 1), outputs, targets)


def test_the_head_is_drawn_anew_for_each_loss() -> None:
    """Losses share no head: their parameters are apart in a checkpoint."""
    one, other = (term_of(name).build(SIZES) for name in ("kd_bank", "kd_mse"))
    assert isinstance(one, torch.nn.Module)
    assert isinstance(other, torch.nn.Module)
    assert not {id(p) for p in one.parameters()} & {id(p) for p in other.parameters()}
