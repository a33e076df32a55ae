"""Views: one definition of pixels, the same wherever it runs."""

import io
import json
import struct
import subprocess
import sys
import zlib
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import SampleError
from pipeline.photometry import apply_photometry
from pipeline.schedule import EvalSchedule, Schedule, ViewParams
from pipeline.views import DecodePolicy, decode, pixel_box, render_geometry, render_views
from tests.inputs import encode, square

POLICY = DecodePolicy()
KEYS = [f"{number:06d}" for number in range(200)]


def picture(width: int = 57, height: int = 43, seed: int = 0) -> np.ndarray:
    """Return uint8 [H,W,3] with smooth parts, edges and noise, from whole numbers only."""
    y, x, c = np.ogrid[:height, :width, :3]
    values = x * (3 + c) + y * 5 + x * y // 7 + 60 * ((x // 9 + y // 7) % 2) + 31 * (seed + c)
    return (values % 256).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def flat(mode: str, colour: Any, size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.new(mode, size, colour)


def chunk(name: bytes, content: bytes) -> bytes:
    check = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)


def png(
    width: int, height: int, bits: int, colour: int, line: bytes, *chunks: bytes, rows: int = -1
) -> bytes:
    """Write a PNG by hand: every line of pixels is `line`."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    pixels = zlib.compress((b"\0" + line) * (height if rows < 0 else rows))
    parts = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def refusal(encoded: bytes, policy: DecodePolicy = POLICY) -> SampleError:
    with pytest.raises(SampleError) as caught:
        decode(encoded, policy)
    return caught.value


def colours(pixels_HW3: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in pixels_HW3.reshape(-1, 3).tolist()}


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
            assert torch.equal(render_geometry(image, params, size)[0], expected), (size, width)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("side", [(400, 8), (8, 400)])
def test_eval_view_exists_at_the_greatest_aspect(mode: Any, side: tuple[int, int]) -> None:
    params = [EvalSchedule(resize_mode=mode).params("a", 0, *side)]
    assert render_geometry(picture(*side), params, 16).shape == (1, 3, 16, 16)


def test_longest_pads_with_black() -> None:
    white = np.full((10, 40, 3), 255, np.uint8)
    params = [EvalSchedule(resize_mode="longest").params("a", 0, 40, 10)]
    view = render_geometry(white, params, 32)[0]
    assert view[:, 12:20].min() == 255
    assert view[:, :12].max() == view[:, 20:].max() == 0


# --- geometry --------------------------------------------------------------------------------


def test_a_crop_is_the_box_it_says() -> None:
    image = picture(64, 64)
    params = ViewParams(x=0.25, y=0.5, width=0.5, height=0.25)
    assert pixel_box(params, 64, 64) == (16, 32, 32, 16)
    view = render_geometry(image[32:48, 16:48], [ViewParams()], 8)
    assert torch.equal(render_geometry(image, [params], 8), view)


def test_a_box_of_the_views_size_is_a_plain_cut() -> None:
    image = picture(64, 64)
    params = ViewParams(x=0.25, y=0.125, width=0.5, height=0.5)
    view = render_geometry(image, [params], 32)[0]
    assert (view.permute(1, 2, 0).numpy() == image[8:40, 16:48]).all()


def test_flip_mirrors_left_and_right() -> None:
    for view in [*crops(5), EvalSchedule().params("a", 0, 57, 43)]:
        plain = render_geometry(picture(), [view._replace(flip=0.0)], 24)
        flipped = render_geometry(picture(), [view._replace(flip=1.0)], 24)
        assert torch.equal(flipped, plain.flip(3))


def test_interpolation_is_the_one_asked_for() -> None:
    cubic = render_geometry(picture(), [ViewParams(interpolation=0)], 24)
    linear = render_geometry(picture(), [ViewParams(interpolation=1)], 24)
    assert not torch.equal(cubic, linear)
    assert (cubic.int() - linear.int()).abs().float().mean() < 16


def test_a_crop_resizes_as_pillow_does() -> None:
    """Two libraries, at most one level apart where a crop is shrunk."""
    image = picture(200, 160)
    expected = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC))
    view = render_geometry(image, [ViewParams()], 32)[0].permute(1, 2, 0).numpy()
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
        views = render_geometry(picture(*side), crops(20, side), 16)
        assert views.shape == (20, 3, 16, 16)


def test_an_upscaled_flat_image_stays_flat() -> None:
    for level in (0, 1, 77, 255):
        image = np.full((5, 9, 3), level, np.uint8)
        assert (render_geometry(image, crops(20, (9, 5)), 33) == level).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_geometry_is_the_same_with_any_number_of_threads(threads: int) -> None:
    image, params = picture(501, 333), crops(20, (501, 333))
    torch.set_num_threads(threads)
    found = render_geometry(image, params, 64)
    torch.set_num_threads(1)
    assert torch.equal(found, render_geometry(image, params, 64))


def test_geometry_is_the_same_from_any_memory_layout() -> None:
    image, params = picture(), crops()
    expected = render_geometry(image, params, 32)
    padded = np.zeros((60, 70, 3), np.uint8)
    padded[5:48, 6:63] = image
    four = np.dstack([image, image[:, :, :1]])
    for other in (
        np.asfortranarray(image),
        padded[5:48, 6:63],
        four[:, :, :3],
        np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0),
    ):
        assert torch.equal(render_geometry(other, params, 32), expected)


def test_geometry_is_the_same_alone_and_among_others() -> None:
    params = crops()
    together = render_geometry(picture(), params, 32)
    alone = [render_geometry(picture(), [view], 32)[0] for view in params]
    assert torch.equal(together, torch.stack(alone))


IN_ANOTHER_PROCESS = """
import hashlib, json, resource
from tests import test_views as here
bombs = here.bombs()
here.everything()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
reasons = [here.refusal(bomb).reason for bomb in bombs]
grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"digest": here.everything(), "reasons": reasons, "grown_kib": grown_kib}))
"""


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


def bombs() -> list[bytes]:
    """Return small files that claim to be large images."""
    animation = saved(
        flat("RGB", "red"),
        "WEBP",
        save_all=True,
        append_images=[flat("RGB", "blue")],
        lossless=True,
    )
    place = animation.index(b"VP8X") + 12
    sides = (8999).to_bytes(3, "little") * 2
    return [
        png(60_000, 60_000, 8, 2, b"", rows=1),
        png(10_000, 10_000, 8, 2, b"", rows=1),
        png(9_000, 9_000, 8, 0, bytes(9_000)),
        saved(Image.new("L", (9_000, 9_000)), "JPEG", quality=10),
        animation[:place] + sides + animation[place + 6 :],
    ]


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, Any]:
    """What a fresh process says."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", IN_ANOTHER_PROCESS],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))


def test_views_are_the_same_in_a_fresh_process(elsewhere: dict[str, Any]) -> None:
    assert elsewhere["digest"] == everything()


# --- photometry after geometry ---------------------------------------------------------------


def test_views_are_geometry_then_photometry_batched_across_samples() -> None:
    """Stage one batches views of many samples; the bytes are those of one at a time."""
    encoded = [
        encode(picture(40 + n, 50 - n, n), kind) for n in range(6) for kind in ("PNG", "JPEG")
    ]
    rule = Schedule()
    alone, geometry, params = [], [], []
    for number, image in enumerate(encoded):
        height, width = decode(image, POLICY).shape[:2]
        views = [rule.params(str(number), view, width, height) for view in range(3)]
        alone.append(render_views(image, views, 32))
        geometry.append(render_geometry(decode(image, POLICY), views, 32))
        params += views
    together = apply_photometry(torch.cat(geometry), np.array(params, np.float32))
    assert torch.equal(together, torch.cat(alone))


def test_rendering_from_stored_parameters_gives_the_same_view() -> None:
    """What the cache stores is what was done, float32 rounding included."""
    params = crops(20)
    stored = [ViewParams(*row.tolist()) for row in np.array(params, np.float32)]
    image = encode(picture())
    assert torch.equal(render_views(image, stored, 32), render_views(image, params, 32))


def test_no_views_asked_none_rendered() -> None:
    assert render_views(encode(picture()), [], 32).shape == (0, 3, 32, 32)


# --- the decode policy -----------------------------------------------------------------------

GREYS = np.repeat(np.arange(16, dtype=np.uint8) * 17, 16).reshape(16, 16)
DEEP = (GREYS.astype(np.uint16) << 8) + 255
LINE_P = bytes([0, 1, 2, 3])
PALETTE = chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60, 70, 80, 90, 250, 0, 1]))
PALETTE_COLOURS = {(10, 20, 30), (40, 50, 60), (70, 80, 90), (250, 0, 1)}


def test_rgb_comes_back_as_it_was() -> None:
    for kind in ("PNG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        encoded = saved(Image.fromarray(picture()), kind, **options)
        assert (decode(encoded, POLICY) == picture()).all()


def test_jpeg_is_pillows_full_decode() -> None:
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"quality": 20}):
        encoded = saved(Image.fromarray(picture(200, 120)), "JPEG", **options)
        expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        assert (decode(encoded, POLICY) == expected).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_grey_becomes_three_equal_channels(kind: str) -> None:
    pixels = decode(saved(Image.fromarray(GREYS), kind), POLICY)
    assert pixels.shape == (16, 16, 3)
    assert (pixels == pixels[:, :, :1]).all()
    assert np.abs(pixels[:, :, 0].astype(int) - GREYS.astype(int)).max() <= (kind == "JPEG")


def test_deep_grey_keeps_its_high_byte_and_is_not_white() -> None:
    pixels = decode(saved(Image.fromarray(DEEP), "PNG"), POLICY)
    assert (pixels == GREYS[:, :, None]).all()


def test_deep_grey_with_a_transparent_level_is_read_the_same() -> None:
    encoded = png(4, 4, 16, 0, bytes([200, 9] * 4), chunk(b"tRNS", b"\0\1"))
    assert colours(decode(encoded, POLICY)) == {(200, 200, 200)}


def test_deep_colour_keeps_its_high_bytes() -> None:
    assert colours(decode(png(4, 4, 16, 2, bytes([1, 255, 100, 0, 50, 7] * 4)), POLICY)) == {
        (1, 100, 50)
    }


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (saved(flat("LA", (90, 0)), "PNG"), {(90, 90, 90)}),
        (saved(flat("RGBA", (9, 80, 200, 0)), "PNG"), {(9, 80, 200)}),
        (saved(flat("RGBA", (9, 80, 200, 128)), "PNG"), {(9, 80, 200)}),
        (saved(flat("RGBA", (9, 80, 200, 128)), "WEBP", lossless=True), {(9, 80, 200)}),
        (saved(flat("1", 1), "PNG"), {(255, 255, 255)}),
        (saved(flat("1", 0), "PNG"), {(0, 0, 0)}),
        (png(4, 4, 2, 0, bytes([0b00011011])), {(v, v, v) for v in (0, 85, 170, 255)}),
        (png(4, 4, 8, 3, LINE_P, PALETTE), PALETTE_COLOURS),
        (png(4, 4, 8, 3, LINE_P, PALETTE, chunk(b"tRNS", bytes([0]))), PALETTE_COLOURS),
        (png(4, 4, 8, 3, LINE_P, PALETTE, chunk(b"tRNS", bytes([0, 9, 255]))), PALETTE_COLOURS),
        (png(4, 4, 8, 0, bytes([7] * 4), chunk(b"tRNS", b"\0\7")), {(7, 7, 7)}),
        (png(4, 4, 8, 2, bytes([7, 8, 9] * 4), chunk(b"tRNS", b"\0\7\0\x08\0\x09")), {(7, 8, 9)}),
        (png(8, 4, 1, 0, bytes([0xF0]), chunk(b"tRNS", b"\0\1")), {(0, 0, 0), (255, 255, 255)}),
    ],
    ids=[
        "LA", "RGBA clear", "RGBA half", "WebP RGBA", "white bit", "black bit", "2-bit", "P",
        "P one clear", "P levels clear", "L clear", "RGB clear", "1-bit clear",
    ],
)  # fmt: skip
def test_alpha_is_dropped_and_palettes_become_their_colours(
    encoded: bytes, expected: set[tuple[int, ...]]
) -> None:
    assert colours(decode(encoded, POLICY)) == expected


@pytest.mark.parametrize("inks", [(0, 0, 0, 0), (255, 0, 0, 0), (30, 60, 90, 120), (0, 0, 0, 255)])
def test_cmyk_becomes_rgb_by_pillows_formula(inks: tuple[int, int, int, int]) -> None:
    cyan, magenta, yellow, black = inks
    wanted = [round((255 - ink) * (255 - black) / 255) for ink in (cyan, magenta, yellow)]
    found = decode(saved(flat("CMYK", inks), "JPEG", quality=100), POLICY)
    assert np.abs(found.astype(int) - wanted).max() <= 2


def test_webp_is_read() -> None:
    pixels = decode(saved(flat("RGB", (10, 200, 30)), "WEBP", quality=100), POLICY)
    assert np.abs(pixels.astype(int) - [10, 200, 30]).max() <= 4


def test_of_an_animation_the_first_frame_is_used() -> None:
    frames = {"save_all": True, "append_images": [flat("RGB", "blue")]}
    for kind in ("WEBP", "PNG"):
        options = {"lossless": True, **frames} if kind == "WEBP" else frames
        assert colours(decode(saved(flat("RGB", "red"), kind, **options), POLICY)) == {(255, 0, 0)}


def test_exif_orientation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by a quarter"
    encoded = saved(Image.fromarray(picture(57, 43)), "JPEG", exif=exif)
    plain = saved(Image.fromarray(picture(57, 43)), "JPEG")
    assert (decode(encoded, POLICY) == decode(plain, POLICY)).all()


def broken_exif() -> bytes:
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\x01\0\0\0\x06"
    return saved(Image.fromarray(square(0, 1)), "JPEG", exif=exif)


def broken_multi_picture() -> bytes:
    """Return a JPEG whose list of further pictures is wrong, as many phones write it."""
    entries = b"\x00\xb0\x07\0\x04\0\0\x000100" + b"\x01\xb0\x04\0\x01\0\0\0\x02\0\0\0"
    entries += b"\x02\xb0\x07\0\x20\0\0\0\x32\0\0\0" + bytes(8)
    segment = b"MPF\0II*\0\x08\0\0\0\x03\0" + entries
    plain = encode(square(0, 1), "JPEG")
    return plain[:2] + b"\xff\xe2" + struct.pack(">H", len(segment) + 2) + segment + plain[2:]


def broken_animation() -> bytes:
    plain = encode(square(0, 1))
    return plain[:33] + chunk(b"acTL", bytes(8)) + plain[33:]


@pytest.mark.parametrize("make", [broken_exif, broken_multi_picture, broken_animation])
def test_wrong_metadata_does_not_cost_the_image(make: Any) -> None:
    kind = "PNG" if make is broken_animation else "JPEG"
    expected = decode(encode(square(0, 1), kind), POLICY)
    assert (decode(make(), POLICY) == expected).all()


HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"", "empty"),
        (HTML, "undecodable"),
        (saved(flat("RGB", "red"), "GIF"), "undecodable"),
        (saved(flat("RGB", "red"), "BMP"), "undecodable"),
        (saved(flat("RGB", "red"), "TIFF"), "undecodable"),
        (encode(picture(), "PNG")[:500], "truncated"),
        (encode(picture(), "JPEG")[:-20], "truncated"),
        (saved(Image.fromarray(picture()), "WEBP")[:-20], "undecodable"),
        (png(3, 9, 8, 0, bytes(3)), "too-small"),
        (png(1, 1, 8, 0, bytes(1)), "too-small"),
        (png(60_000, 1, 8, 0, bytes(60_000)), "too-small"),
        (png(1001, 20, 8, 0, bytes(1001)), "too-long"),
        (png(20, 1001, 8, 0, bytes(20)), "too-long"),
    ],
    ids=[
        "nothing", "HTML", "GIF", "BMP", "TIFF", "cut PNG", "cut JPEG", "cut WebP", "3x9", "1x1",
        "60000x1", "1001x20", "20x1001",
    ],
)  # fmt: skip
def test_an_unusable_image_is_skipped_with_a_reason(encoded: bytes, reason: str) -> None:
    error = refusal(encoded)
    assert error.reason == reason
    assert len(error.detail) <= 200


def test_limits_are_inclusive() -> None:
    assert decode(png(1000, 20, 8, 0, bytes(1000)), POLICY).shape == (20, 1000, 3)
    assert decode(png(4, 4, 8, 0, bytes(4)), POLICY).shape == (4, 4, 3)
    exact = DecodePolicy(max_pixels=16, max_bytes=len(png(4, 4, 8, 0, bytes(4))))
    assert decode(png(4, 4, 8, 0, bytes(4)), exact).shape == (4, 4, 3)


def test_too_many_bytes_are_not_even_looked_at() -> None:
    error = refusal(encode(picture()), DecodePolicy(max_bytes=1000))
    assert error.reason == "too-many-bytes"
    assert "at most 1000" in error.detail


def test_the_same_bad_image_is_skipped_in_the_same_words() -> None:
    """Skips are compared byte for byte between runs."""
    assert str(refusal(HTML)) == str(refusal(bytes(HTML)))
    assert "0x" not in refusal(HTML).detail
    assert "<!DOCTYPE" in refusal(HTML).detail


def test_too_many_pixels_are_refused_before_there_is_room_for_them(
    elsewhere: dict[str, Any],
) -> None:
    assert elsewhere["reasons"] == ["too-many-pixels"] * 5
    assert elsewhere["grown_kib"] < 32 * 1024  # 9000 x 9000 RGB is 240 MiB


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "progressive", "WEBP"])
def test_a_cut_image_is_never_shown_in_part(kind: str) -> None:
    options = {"progressive": True} if kind == "progressive" else {}
    name = "JPEG" if kind == "progressive" else kind
    whole = saved(Image.fromarray(square(0, 1)), name, **options)
    expected = decode(whole, POLICY)
    for length in range(0, len(whole), 7):
        try:
            found = decode(whole[:length], POLICY)
        except SampleError:
            continue
        assert length > len(whole) - 32, length  # only what follows the pixels is missing
        assert (found == expected).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_bytes": 0},
        {"max_pixels": 0},
        {"max_pixels": 100_000_000},  # Pillow would refuse what the policy allows
        {"max_aspect": 0.5},
        {"max_aspect": float("nan")},
        {"min_side_px": 0},
    ],
    ids=str,
)
def test_a_senseless_policy_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DecodePolicy(**wrong)
