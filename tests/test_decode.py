"""Decoding: what becomes pixels, what becomes a skip, and which pixels exactly."""

import io
import json
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.decode import FULL, SCALES, DecodePolicy, SourceImage, decode
from pipeline.errors import SampleError
from tests.images import chunk, flat, picture, png, saved
from tests.inputs import encode, square
from tests.runs import said_elsewhere

POLICY = DecodePolicy()


def refusal(encoded: bytes, policy: DecodePolicy = POLICY) -> SampleError:
    with pytest.raises(SampleError) as caught:
        decode(encoded, policy)
    return caught.value


def colours(pixels_HW3: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in pixels_HW3.reshape(-1, 3).tolist()}


IN_ANOTHER_PROCESS = """
import json, resource
from tests import images, test_decode as here
bombs = images.bombs()
for kind in ("PNG", "JPEG", "WEBP"):
    here.decode(images.saved(images.flat("RGB", "red"), kind), here.POLICY)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
reasons = [here.refusal(bomb).reason for bomb in bombs]
grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"reasons": reasons, "grown_kib": grown_kib}))
"""


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, Any]:
    """What a fresh process says."""
    return dict(json.loads(said_elsewhere(IN_ANOTHER_PROCESS)))


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
        (encode(picture(), "JPEG")[:400], "truncated"),
        (saved(Image.fromarray(picture()), "WEBP")[:-20], "undecodable"),
        (png(3, 9, 8, 0, bytes(3)), "too-small"),
        (png(1, 1, 8, 0, bytes(1)), "too-small"),
        (png(60_000, 1, 8, 0, bytes(60_000)), "too-small"),
        (png(1001, 20, 8, 0, bytes(1001)), "too-long"),
        (png(20, 1001, 8, 0, bytes(20)), "too-long"),
    ],
    ids=[
        "nothing", "HTML", "GIF", "BMP", "TIFF", "cut PNG", "cut JPEG", "cut JPEG header",
        "cut WebP", "3x9", "1x1", "60000x1", "1001x20", "20x1001",
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
    "options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str
)
def test_a_jpeg_that_ends_too_early_is_truncated_though_it_has_an_end(
    options: dict[str, Any],
) -> None:
    """As a proxy or a repair tool leaves it; Pillow shows the rest as grey."""
    whole = saved(Image.fromarray(picture(320, 240)), "JPEG", **options)
    ended = whole[: len(whole) // 2] + whole[-2:]
    Image.open(io.BytesIO(ended)).load()
    assert refusal(ended).reason == "truncated"
    for eighths in SCALES:
        with pytest.raises(SampleError):
            SourceImage(ended, POLICY).pixels(eighths)


def test_bytes_too_many_in_a_jpeg_do_not_cost_the_image() -> None:
    whole = saved(Image.fromarray(picture(320, 240)), "JPEG")
    for encoded in (whole + b"more", whole[:-2] + b"more" + whole[-2:]):
        assert (decode(encoded, POLICY) == decode(whole, POLICY)).all()


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


# --- decoding at a reduced scale -------------------------------------------------------------


@pytest.mark.parametrize("subsampling", [0, 1, 2], ids=["444", "422", "420"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("side", [(8, 8), (17, 33), (500, 375), (499, 331)], ids=str)
def test_a_full_jpeg_equals_pillows(
    side: tuple[int, int], progressive: bool, subsampling: int
) -> None:
    image = Image.fromarray(picture(*side))
    encoded = saved(image, "JPEG", subsampling=subsampling, progressive=progressive)
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    assert (decode(encoded, POLICY) == expected).all()


@pytest.mark.parametrize("side", [(8, 8), (17, 33), (500, 375), (499, 331)], ids=str)
def test_scales_are_eighths_rounded_up(side: tuple[int, int]) -> None:
    image = SourceImage(saved(Image.fromarray(picture(*side)), "JPEG"), POLICY)
    assert (image.width, image.height) == side
    for eighths in SCALES:
        expected = tuple(-(-length * eighths // 8) for length in reversed(side))
        assert image.pixels(eighths).shape == (*expected, 3)


def test_a_scaled_jpeg_shows_the_same_picture() -> None:
    smooth = Image.fromarray(square(0, 3)).resize((320, 240), Image.Resampling.BICUBIC)
    image = SourceImage(saved(smooth, "JPEG", quality=95), POLICY)
    for eighths in (1, 2, 4):
        found = image.pixels(eighths)
        size = (found.shape[1], found.shape[0])
        expected = np.asarray(smooth.resize(size, Image.Resampling.BOX)).astype(int)
        assert np.abs(found - expected).mean() < 2


def test_what_is_no_plain_jpeg_is_decoded_in_full_at_any_scale() -> None:
    cmyk = saved(Image.fromarray(picture(64, 48)).convert("CMYK"), "JPEG")
    for encoded in (saved(Image.fromarray(picture(64, 48)), "PNG"), cmyk):
        image = SourceImage(encoded, POLICY)
        expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        for eighths in (4, FULL):
            assert (image.pixels(eighths) == expected).all()


@pytest.mark.parametrize("eighths", SCALES)
def test_a_cut_jpeg_is_refused_at_every_scale(eighths: int) -> None:
    whole = saved(Image.fromarray(picture(320, 240)), "JPEG")
    image = SourceImage(whole[: len(whole) // 2], POLICY)
    with pytest.raises(SampleError) as caught:
        image.pixels(eighths)
    assert caught.value.reason == "truncated"


# --- decoding no further down than is needed -------------------------------------------------


def test_only_what_was_seen_whole_is_decoded_in_part() -> None:
    encoded = saved(Image.fromarray(picture(320, 240)), "JPEG")
    for eighths in SCALES:
        tall = 240 * eighths // FULL
        assert len(SourceImage(encoded, POLICY).pixels(eighths, rows=1)) == tall
        known = SourceImage(encoded, POLICY, seen_whole=True)
        assert len(known.pixels(eighths, rows=1)) < tall / 4
        assert known.size(eighths) == (320 * eighths // FULL, tall)


def test_rows_that_are_asked_for_later_are_decoded_then() -> None:
    encoded = saved(Image.fromarray(picture(320, 240)), "JPEG")
    image = SourceImage(encoded, POLICY, seen_whole=True)
    for rows in (10, 100, 50, 240):
        found = image.pixels(rows=rows)
        assert len(found) >= rows
        assert (found[:rows] == decode(encoded, POLICY)[:rows]).all()
    assert image.pixels().shape == (240, 320, 3)


def test_a_jpeg_with_bytes_too_many_keeps_its_scales() -> None:
    """Else what is seen of it would hang on whether a decoder comes to those bytes."""
    whole = saved(Image.fromarray(picture(320, 240)), "JPEG")
    more = whole[:-2] + b"more" + whole[-2:]
    for eighths in SCALES:
        expected = SourceImage(whole, POLICY).pixels(eighths)
        assert (SourceImage(more, POLICY).pixels(eighths) == expected).all()


@pytest.mark.parametrize("eighths", SCALES)
def test_a_cut_jpeg_is_refused_though_its_first_rows_are_there(eighths: int) -> None:
    whole = saved(Image.fromarray(picture(320, 240)), "JPEG")
    for encoded in (whole[: len(whole) // 2], whole[: len(whole) // 2] + whole[-2:]):
        with pytest.raises(SampleError):
            SourceImage(encoded, POLICY).pixels(eighths, rows=1)
