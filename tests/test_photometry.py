"""Photometry: integer arithmetic that gives the same bytes everywhere."""

from collections.abc import Callable
from hashlib import sha256
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as reference
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from pipeline.photometry import apply_photometry
from pipeline.schedule import Schedule, ViewParams

SIDE = 32
JITTER = {"brightness": 1.3, "contrast": 0.7, "saturation": 1.4, "hue": 0.08}
# sha256 of `pattern(4)` after `CHAIN`. It may change only together with the cache's version.
GOLDEN = "5a7dc44c15e2c380140a72275a71ee2b603c5d1116aa3553a5bb1871042345a0"
CHAIN = (
    ViewParams(),
    ViewParams(**JITTER),
    ViewParams(**JITTER, blur_sigma=0.05),
    ViewParams(brightness=0.6, hue=-0.1, grayscale=1, blur_sigma=0.01),
)


def pattern(count: int, side: int = SIDE) -> Tensor:
    """Return uint8 [B,3,H,W] of waves and edges, from whole numbers only."""
    b, c, y, x = np.ogrid[:count, :3, :side, :side]
    values = (x * (7 + 5 * c) + y * (3 + 2 * b) + x * y // (2 + c) + 90 * ((x + y + b) // 9)) % 256
    return torch.from_numpy(values.astype(np.uint8))


def noise(count: int = 4, side: int = SIDE) -> Tensor:
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (count, 3, side, side), np.uint8)
    )


def unsaturated(count: int = 4) -> Tensor:
    """Return colours whose chroma can be turned without leaving the gamut."""
    return torch.from_numpy(
        np.random.default_rng(1).integers(100, 156, (count, 3, SIDE, SIDE), np.uint8)
    )


def rows(*params: ViewParams) -> np.ndarray:
    return np.array(params, np.float32)


def apply(views: Tensor, **params: float) -> Tensor:
    """Apply the same parameters to every view."""
    return apply_photometry(views, rows(*[ViewParams(**params)] * len(views)))


def worst(one: Tensor | np.ndarray, other: Tensor | np.ndarray) -> int:
    """Return the greatest difference in levels."""
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


def luma(views: Tensor) -> np.ndarray:
    return (views.numpy().astype(float) * np.reshape([0.299, 0.587, 0.114], (1, 3, 1, 1))).sum(1)


def test_golden_chain() -> None:
    result = apply_photometry(pattern(4), rows(*CHAIN))
    assert sha256(result.numpy().tobytes()).hexdigest() == GOLDEN


def test_identity_rows_come_back_untouched() -> None:
    views = noise(3)
    result = apply_photometry(views, rows(ViewParams(), CHAIN[2], ViewParams()))
    assert torch.equal(result[0], views[0])
    assert not torch.equal(result[1], views[1])
    assert torch.equal(result[2], views[2])


def test_geometry_parameters_play_no_part() -> None:
    views = noise(1)
    assert torch.equal(apply(views, x=0.1, width=0.3, flip=1, geometry=2, interpolation=1), views)


@pytest.mark.parametrize("params", [*CHAIN[1:], ViewParams(blur_sigma=0.5)])
def test_input_is_never_changed(params: ViewParams) -> None:
    views = noise(1)
    before = views.clone()
    apply_photometry(views, rows(params))
    assert torch.equal(views, before)


def test_a_views_result_does_not_depend_on_its_batch() -> None:
    rule = Schedule(jitter=0.7, grayscale=0.3, blur=0.6, blur_sigma=(0.001, 0.2))
    views = noise(24)
    params = rows(*(rule.params(str(number), 0, 40, 40) for number in range(24)))
    together = apply_photometry(views, params)
    alone = [apply_photometry(views[i : i + 1], params[i : i + 1])[0] for i in range(24)]
    assert torch.equal(together, torch.stack(alone))
    backwards = apply_photometry(views.flip(0), params[::-1].copy())
    assert torch.equal(together, backwards.flip(0))


def test_memory_layout_does_not_matter() -> None:
    views = noise(4)
    expected = apply_photometry(views, rows(*CHAIN))
    for other in (
        views.contiguous(memory_format=torch.channels_last),
        views.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat([views, views])[:4],
    ):
        assert torch.equal(apply_photometry(other, rows(*CHAIN)), expected)


def test_an_empty_batch_stays_empty() -> None:
    empty = torch.zeros((0, 3, 8, 8), dtype=torch.uint8)
    assert apply_photometry(empty, rows(*CHAIN)[:0]).shape == (0, 3, 8, 8)


LUMA = np.array([0.299, 0.587, 0.114])
YIQ = np.array([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def step(name: str, value: float, pixels_3N: np.ndarray) -> np.ndarray:
    """Do one operation by its textbook formula, in float64, without clipping."""
    luma = LUMA @ pixels_3N
    if name == "hue":
        cos, sin = np.cos(-2 * np.pi * value), np.sin(-2 * np.pi * value)
        turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
        return np.asarray(np.linalg.inv(YIQ) @ turn @ YIQ @ pixels_3N)
    pivot = {"brightness": 0.0, "contrast": luma.mean(), "saturation": luma}[name]
    return np.asarray(value * pixels_3N + (1 - value) * pivot)


@pytest.mark.parametrize("order", list(permutations(JITTER)), ids="-".join)
def test_jitter_is_its_steps_in_any_order(order: tuple[str, ...]) -> None:
    """Without clipping in between, the four operations commute."""
    for views in (noise(1), pattern(1)):
        expected = views[0].numpy().reshape(3, -1).astype(float)
        for name in order:
            expected = step(name, JITTER[name], expected)
        found = apply(views, **JITTER)[0].numpy().reshape(3, -1)
        assert np.abs(found - expected.clip(0, 255)).max() < 0.51


def test_grayscale_follows_jitter() -> None:
    views = noise(1)
    expected = views[0].numpy().reshape(3, -1).astype(float)
    for name, value in JITTER.items():
        expected = step(name, value, expected)
    found = apply(views, **JITTER, grayscale=1)[0].numpy().reshape(3, -1)
    assert np.abs(found - (LUMA @ expected).clip(0, 255)).max() < 0.51


def test_blur_follows_colour() -> None:
    views = noise(1)
    expected = apply(apply(views, **JITTER, grayscale=1), blur_sigma=0.04)
    assert torch.equal(apply(views, **JITTER, grayscale=1, blur_sigma=0.04), expected)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", [0.6, 0.85, 1.15, 1.4])
def test_usual_factors_are_within_one_level_of_torchvision(name: str, factor: float) -> None:
    expected: Callable[[Tensor, float], Tensor] = getattr(reference, f"adjust_{name}")
    for views in (noise(), pattern(4), unsaturated()):
        assert worst(apply(views, **{name: factor}), expected(views, factor)) <= 1


def test_the_greatest_factor_does_not_overflow() -> None:
    views = noise(1)
    factor = 101
    assert torch.equal(
        apply(views, brightness=factor), (views.int() * factor).clamp(0, 255).to(torch.uint8)
    )
    for name in ("contrast", "saturation"):
        grey = np.full_like(views, 37)
        assert worst(apply(torch.from_numpy(grey), **{name: factor}), grey) == 0


def test_contrast_keeps_the_mean_of_a_large_flat_view() -> None:
    white = torch.full((1, 3, 3000, 3000), 255, dtype=torch.uint8)
    assert torch.equal(apply(white, contrast=0.5), white)


def test_grayscale_equals_pillow() -> None:
    for views in (noise(2, 64), pattern(2)):
        result = apply(views, grayscale=1)
        for view, grey in zip(views, result, strict=True):
            expected = np.asarray(Image.fromarray(view.permute(1, 2, 0).numpy()).convert("L"))
            assert (grey.numpy() == expected).all()


def test_saturation_zero_is_grayscale() -> None:
    assert torch.equal(apply(noise(), saturation=0), apply(noise(), grayscale=1))


@pytest.mark.parametrize("turns", [-0.5, -0.1, 0.03, 0.1, 0.25, 0.5])
def test_hue_keeps_luma(turns: float) -> None:
    views = unsaturated()
    turned = apply(views, hue=turns)
    assert np.abs(luma(turned) - luma(views)).max() <= 2
    assert worst(turned, views) > 2


def test_hue_leaves_greys_alone() -> None:
    greys = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    for turns in (-0.5, -0.07, 0.1, 0.33, 0.5):
        assert torch.equal(apply(greys, hue=turns), greys)


def test_two_half_turns_return() -> None:
    views = unsaturated()
    for first, second in ((0.5, 0.5), (0.5, -0.5), (-0.5, -0.5), (0.1, -0.1)):
        assert worst(apply(apply(views, hue=first), hue=second), views) <= 2


@pytest.mark.parametrize(("turns", "channel"), [(1 / 3, 1), (-1 / 3, 2), (0.1, 0), (-0.1, 0)])
def test_hue_turns_the_way_torchvision_does(turns: float, channel: int) -> None:
    """Direction only: a turn of the chroma plane is not HSV's shift, whose amounts differ."""
    red = torch.tensor([160, 110, 110], dtype=torch.uint8).reshape(1, 3, 1, 1).expand(1, 3, 8, 8)
    ours, theirs = (
        turned[0, :, 0, 0].int().tolist()
        for turned in (apply(red, hue=turns), reference.adjust_hue(red, turns))
    )
    assert ours.index(max(ours)) == theirs.index(max(theirs)) == channel
    assert (ours[1] > ours[2]) == (theirs[1] > theirs[2]) == (turns > 0)


@pytest.mark.parametrize("sigma_px", [0.1, 0.5, 1.0, 2.0, 5.0])
def test_blur_is_close_to_other_peoples(sigma_px: float) -> None:
    radius = int(np.ceil(3 * sigma_px))
    for views in (noise(), pattern(4)):
        result = apply(views, blur_sigma=sigma_px / SIDE)
        kernel = 2 * radius + 1
        if radius < SIDE:
            assert worst(result, reference.gaussian_blur(views, [kernel] * 2, [sigma_px] * 2)) <= 1
        exact = [
            gaussian_filter(plane.astype(float), sigma_px, mode="mirror", radius=radius)
            for plane in views.numpy().reshape(-1, SIDE, SIDE)
        ]
        assert np.abs(result.numpy().reshape(-1, SIDE, SIDE) - np.array(exact)).max() <= 0.8


def test_blur_keeps_a_flat_view() -> None:
    for level in (0, 1, 128, 254, 255):
        flat = torch.full((1, 3, SIDE, SIDE), level, dtype=torch.uint8)
        for sigma in (0.001, 0.01, 0.1, 1.0):
            assert torch.equal(apply(flat, blur_sigma=sigma), flat)


def test_blur_works_on_views_smaller_than_its_reach() -> None:
    for side in (1, 2, 3):
        result = apply(noise(1, side), blur_sigma=1.0)
        assert result.shape == (1, 3, side, side)


def test_blur_keeps_the_symmetry_of_its_input() -> None:
    views = noise(1)
    for dims in ((2,), (3,)):
        assert torch.equal(
            apply(views.flip(dims), blur_sigma=0.05), apply(views, blur_sigma=0.05).flip(dims)
        )


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_matter(threads: int) -> None:
    torch.set_num_threads(threads)
    views, params = pattern(64, 64), rows(*CHAIN * 16)
    found = apply_photometry(views, params)
    torch.set_num_threads(1)
    assert torch.equal(found, apply_photometry(views, params))


@pytest.mark.gpu
def test_a_gpu_gives_the_same_bytes() -> None:
    views: Any = pattern(4)
    assert torch.equal(
        apply_photometry(views.cuda(), rows(*CHAIN)).cpu(), apply_photometry(views, rows(*CHAIN))
    )
