"""Views: one definition of pixels, the same wherever it runs."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipeline.decode import FULL, SCALES, DecodePolicy, SourceImage, decode
from pipeline.photometry import apply_photometry
from pipeline.schedule import INTERPOLATIONS, EvalSchedule, Schedule, ViewParams
from pipeline.views import decoding_scale, pixel_box, render_geometry, render_views
from tests.images import picture, saved
from tests.inputs import encode
from tests.runs import said_elsewhere

POLICY = DecodePolicy()
KEYS = [f"{number:06d}" for number in range(200)]


def geometry(pixels_HW3: np.ndarray, params: Sequence[ViewParams], size: int) -> Tensor:
    return render_geometry(SourceImage.of(pixels_HW3), params, size)


def crops(count: int = 40, size: tuple[int, int] = (57, 43)) -> list[ViewParams]:
    rule = Schedule(flip=0.5, crop_scale=(0.05, 1.0))
    return [rule.params(key, 0, *size) for key in KEYS[:count]]


# --- the eval view ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_eval_view_is_the_teachers_own_preprocessing(mode: Any, interpolation: Any) -> None:
    from open_clip.transform import image_transform

    rule = EvalSchedule(resize_mode=mode, interpolation=interpolation)
    for size in (17, 32, 64, 224):
        theirs = image_transform(
            size,
            is_train=False,
            mean=(0, 0, 0),
            std=(1, 1, 1),
            resize_mode=mode,
            interpolation=interpolation,
        )
        for width, height in (
            (40, 36),
            (36, 40),
            (32, 32),
            (300, 41),
            (7, 5),
            (63, 64),
            (501, 333),
        ):
            image = picture(width, height)
            expected = (theirs(Image.fromarray(image)) * 255).round().to(torch.uint8)
            params = [rule.params("a", 0, width, height)]
            assert torch.equal(geometry(image, params, size)[0], expected), (size, width)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("side", [(400, 8), (8, 400)])
def test_eval_view_exists_at_the_greatest_aspect(mode: Any, side: tuple[int, int]) -> None:
    params = [EvalSchedule(resize_mode=mode).params("a", 0, *side)]
    assert geometry(picture(*side), params, 16).shape == (1, 3, 16, 16)


def test_longest_pads_with_black() -> None:
    white = np.full((10, 40, 3), 255, np.uint8)
    params = [EvalSchedule(resize_mode="longest").params("a", 0, 40, 10)]
    view = geometry(white, params, 32)[0]
    assert view[:, 12:20].min() == 255
    assert view[:, :12].max() == view[:, 20:].max() == 0


# --- geometry --------------------------------------------------------------------------------


def test_a_crop_is_the_box_it_says() -> None:
    image = picture(64, 64)
    params = ViewParams(x=0.25, y=0.5, width=0.5, height=0.25)
    assert pixel_box(params, 64, 64) == (16, 32, 32, 16)
    view = geometry(image[32:48, 16:48], [ViewParams()], 8)
    assert torch.equal(geometry(image, [params], 8), view)


def test_a_box_of_the_views_size_is_a_plain_cut() -> None:
    image = picture(64, 64)
    params = ViewParams(x=0.25, y=0.125, width=0.5, height=0.5)
    view = geometry(image, [params], 32)[0]
    assert (view.permute(1, 2, 0).numpy() == image[8:40, 16:48]).all()


def test_flip_mirrors_left_and_right() -> None:
    for view in [*crops(5), EvalSchedule().params("a", 0, 57, 43)]:
        plain = geometry(picture(), [view._replace(flip=0.0)], 24)
        flipped = geometry(picture(), [view._replace(flip=1.0)], 24)
        assert torch.equal(flipped, plain.flip(3))


def test_interpolation_is_the_one_asked_for() -> None:
    cubic = geometry(picture(), [ViewParams(interpolation=0)], 24)
    linear = geometry(picture(), [ViewParams(interpolation=1)], 24)
    assert not torch.equal(cubic, linear)
    assert (cubic.int() - linear.int()).abs().float().mean() < 16


def test_a_crop_resizes_as_pillow_does() -> None:
    """Two libraries, at most one level apart where a crop is shrunk."""
    image = picture(200, 160)
    expected = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC))
    view = geometry(image, [ViewParams()], 32)[0].permute(1, 2, 0).numpy()
    assert np.abs(view.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (4, 200), (5, 7), (37, 23), (640, 427)], ids=str)
def test_pixel_box_is_never_empty_nor_outside(size: tuple[int, int]) -> None:
    width, height = size
    drawn = [Schedule(crop_scale=(0.001, 1.0)).params(key, 0, *size) for key in KEYS]
    edges = [ViewParams(x=x, y=y, width=w, height=h) for x in (0.0, 1.0) for y in (0.0, 1.0)
             for w in (0.0, 1e-9, 1.0) for h in (0.0, 1e-9, 1.0)]  # fmt: skip
    for view in [*drawn, *edges]:
        left, top, wide, tall = pixel_box(view, width, height)
        assert 0 <= left < left + wide <= width
        assert 0 <= top < top + tall <= height


def test_pixel_box_is_within_half_a_pixel_of_the_crop() -> None:
    for view in crops(200):
        left, top, wide, tall = pixel_box(view, 57, 43)
        for found, wanted in (
            (left, view.x * 57),
            (top, view.y * 43),
            (wide, view.width * 57),
            (tall, view.height * 43),
        ):
            assert abs(found - wanted) <= 1.0001  # half for rounding, half for staying inside


def test_smallest_images_can_be_rendered() -> None:
    for side in ((1, 1), (1, 3), (4, 200)):
        views = geometry(picture(*side), crops(20, side), 16)
        assert views.shape == (20, 3, 16, 16)


def test_an_upscaled_flat_image_stays_flat() -> None:
    for level in (0, 1, 77, 255):
        image = np.full((5, 9, 3), level, np.uint8)
        assert (geometry(image, crops(20, (9, 5)), 33) == level).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_geometry_is_the_same_with_any_number_of_threads(threads: int) -> None:
    image, params = picture(501, 333), crops(20, (501, 333))
    torch.set_num_threads(threads)
    found = geometry(image, params, 64)
    torch.set_num_threads(1)
    assert torch.equal(found, geometry(image, params, 64))


def test_geometry_is_the_same_from_any_memory_layout() -> None:
    image, params = picture(), crops()
    expected = geometry(image, params, 32)
    padded = np.zeros((60, 70, 3), np.uint8)
    padded[5:48, 6:63] = image
    four = np.dstack([image, image[:, :, :1]])
    for other in (
        np.asfortranarray(image),
        padded[5:48, 6:63],
        four[:, :, :3],
        np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0),
    ):
        assert torch.equal(geometry(other, params, 32), expected)


@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 90), st.sampled_from(INTERPOLATIONS))
@example(1, 1, 1, "bicubic")
@example(7, 5, 1, "bilinear")
def test_colours_that_lie_together_resize_as_planes_of_colour_do(
    wide: int, tall: int, size: int, mode: str
) -> None:
    pixels_HW3 = np.random.default_rng(wide * 100 + tall).integers(
        0, 256, (tall, wide, 3), np.uint8
    )
    planes = torch.from_numpy(pixels_HW3).permute(2, 0, 1)[None].contiguous()
    expected = torch.cat(  # one by one: torch fails to make one pixel out of three planes
        [
            F.interpolate(plane, size=(size, size), mode=mode, antialias=True)
            for plane in planes.split(1, dim=1)
        ],
        dim=1,
    )
    view = ViewParams(interpolation=INTERPOLATIONS.index(mode))
    found = geometry(pixels_HW3, [view], size)
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_geometry_is_the_same_alone_and_among_others() -> None:
    params = crops()
    together = geometry(picture(), params, 32)
    alone = [geometry(picture(), [view], 32)[0] for view in params]
    assert torch.equal(together, torch.stack(alone))


IN_ANOTHER_PROCESS = "from tests import test_views; print(test_views.everything())"


def everything() -> str:
    """Return the sha256 of many views of many images."""
    digest = sha256()
    rule = Schedule()
    for width, height in ((57, 43), (300, 41), (640, 427)):
        for kind in ("PNG", "JPEG"):
            encoded = encode(picture(width, height), kind)
            params = [rule.params("a", view, width, height) for view in range(6)]
            params.append(EvalSchedule().params("a", 0, width, height))
            for size in (17, 64):
                digest.update(render_views(encoded, params, size).numpy().tobytes())
    return digest.hexdigest()


def test_views_are_the_same_in_a_fresh_process() -> None:
    assert said_elsewhere(IN_ANOTHER_PROCESS).strip() == everything()


# --- photometry after geometry ---------------------------------------------------------------


def test_views_are_geometry_then_photometry_batched_across_samples() -> None:
    """Stage one batches views of many samples; the bytes are those of one at a time."""
    encoded = [
        encode(picture(40 + n, 50 - n, n), kind) for n in range(6) for kind in ("PNG", "JPEG")
    ]
    rule = Schedule()
    alone, parts, params = [], [], []
    for number, image in enumerate(encoded):
        height, width = decode(image, POLICY).shape[:2]
        views = [rule.params(str(number), view, width, height) for view in range(3)]
        alone.append(render_views(image, views, 32))
        parts.append(geometry(decode(image, POLICY), views, 32))
        params += views
    together = apply_photometry(torch.cat(parts), np.array(params, np.float32))
    assert torch.equal(together, torch.cat(alone))


def test_rendering_from_stored_parameters_gives_the_same_view() -> None:
    """What the cache stores is what was done, float32 rounding included."""
    params = crops(20)
    stored = [ViewParams(*row.tolist()) for row in np.array(params, np.float32)]
    image = encode(picture())
    assert torch.equal(render_views(image, stored, 32), render_views(image, params, 32))


def test_no_views_asked_none_rendered() -> None:
    assert render_views(encode(picture()), [], 32).shape == (0, 3, 32, 32)


# --- decoding at a reduced scale -------------------------------------------------------------


@pytest.mark.parametrize("size", [40, 64, 224])
def test_a_crop_is_decoded_at_the_least_scale_that_covers_the_view(size: int) -> None:
    rule = Schedule(crop_scale=(0.05, 1.0))
    used = set()
    for key in KEYS:
        view = rule.params(key, 0, 1500, 1100)
        eighths = decoding_scale(view, 1500, 1100, size)
        used.add(eighths)
        _, _, wide, tall = pixel_box(view, -(-1500 * eighths // 8), -(-1100 * eighths // 8))
        assert min(wide, tall) >= size
        if eighths > 1:
            half = eighths // 2
            _, _, wide, tall = pixel_box(view, -(-1500 * half // 8), -(-1100 * half // 8))
            assert min(wide, tall) < size
    assert len(used) > 1


@given(st.integers(4, 900), st.integers(4, 900), st.integers(1, 300), st.integers(0, 2**32))
def test_no_scale_that_covers_the_view_is_passed_over(
    width: int, height: int, size: int, seed: int
) -> None:
    view = Schedule(seed=seed, crop_scale=(0.05, 1.0)).params("a", 0, width, height)
    covering = [
        eighths
        for eighths in SCALES
        if min(pixel_box(view, -(-width * eighths // FULL), -(-height * eighths // FULL))[2:])
        >= size
    ]
    assert decoding_scale(view, width, height, size) == min(covering, default=FULL)


def test_small_crops_and_the_eval_view_are_decoded_in_full() -> None:
    assert decoding_scale(ViewParams(width=0.1, height=0.1), 500, 375, 224) == FULL
    assert decoding_scale(EvalSchedule().params("a", 0, 4000, 3000), 4000, 3000, 32) == FULL


def test_a_view_from_a_scaled_jpeg_is_close_to_one_from_the_whole() -> None:
    smooth = Image.fromarray(picture(90, 70)).resize((900, 700), Image.Resampling.BICUBIC)
    encoded = saved(smooth, "JPEG", quality=95)
    view = ViewParams(x=0.1, y=0.1, width=0.8, height=0.8)
    assert decoding_scale(view, 900, 700, 224) == 4
    scaled = render_views(encoded, [view], 224)
    whole = geometry(decode(encoded, POLICY), [view], 224)
    assert (scaled.int() - whole.int()).abs().float().mean() < 1


def test_views_do_not_depend_on_which_others_are_rendered_from_the_image() -> None:
    encoded = saved(Image.fromarray(picture(900, 700)), "JPEG")
    params = crops(30, (900, 700))
    together = render_views(encoded, params, 64)
    alone = [render_views(encoded, [view], 64)[0] for view in params]
    assert torch.equal(together, torch.stack(alone))


# --- decoding no further down than the crop --------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.integers(20, 300),
    st.integers(20, 300),
    st.integers(0, 2),
    st.sampled_from([{}, {"progressive": True}, {"restart_marker_rows": 2}]),
    st.integers(0, 2**32),
)
def test_views_of_a_jpeg_that_was_seen_whole_are_those_of_the_whole(
    width: int, height: int, subsampling: int, options: dict[str, Any], seed: int
) -> None:
    pixels = Image.fromarray(picture(width, height))
    encoded = saved(pixels, "JPEG", subsampling=subsampling, **options)
    views = [Schedule(seed=seed).params("a", view, width, height) for view in range(4)]
    for view in [*views, EvalSchedule().params("a", 0, width, height)]:
        known = SourceImage(encoded, POLICY, seen_whole=True)
        for size in (17, 64, 96):  # several scales, and several sizes of one
            expected = render_geometry(SourceImage(encoded, POLICY), [view], size)
            assert torch.equal(render_geometry(known, [view], size), expected)


def test_sizes_that_share_a_scale_share_one_decoding() -> None:
    encoded = saved(Image.fromarray(picture(300, 240)), "JPEG")
    view = ViewParams(x=0.1, y=0.1, width=0.8, height=0.5)
    image = SourceImage(encoded, POLICY, seen_whole=True)
    for eighths, sizes in ((FULL, (112, 80, 100)), (4, (60, 40, 50))):
        decoded = set()
        for size in sizes:
            assert decoding_scale(view, 300, 240, size) == eighths
            render_geometry(image, [view], size)
            decoded.add(id(image.pixels(eighths, rows=1)))
        assert len(decoded) == 1
        assert len(image.pixels(eighths, rows=1)) < 0.75 * 240 * eighths / FULL
