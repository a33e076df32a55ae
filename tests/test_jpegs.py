"""Shortened JPEGs: their rows are those of the whole, at every scale, or they are left alone."""

import io
import struct
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.decode import FULL, SCALES, DecodePolicy, SourceImage
from pipeline.errors import SampleError
from pipeline.jpegs import shortened
from tests.images import flat, picture, saved

POLICY = DecodePolicy()
LAYOUTS = ("444", "422", "420", "440", "411", "Gray")


def noisy(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Return uint8 [H,W,3] of which no row of blocks is like another."""
    noise = np.random.default_rng(seed).integers(0, 128, (height, width, 3), np.uint8)
    return picture(width, height, seed) // 2 + noise


def jpeg(width: int, height: int, layout: str, quality: int = 80) -> bytes:
    pixels = noisy(width, height)
    grey = np.ascontiguousarray(pixels[:, :, :1])
    colour = "GRAY" if layout == "Gray" else "RGB"
    return bytes(
        simplejpeg.encode_jpeg(
            grey if layout == "Gray" else pixels, quality, colour, colorsubsampling=layout
        )
    )


def assert_rows_are_those_of_the_whole(encoded: bytes, eighths: int, every: int = 1) -> int:
    """Hold every `every`th bottom row against the whole; return how often rows were left out."""
    whole = SourceImage(encoded, POLICY)
    whole_HW3 = whole.pixels(eighths)
    left_out = 0
    for rows in {*range(1, len(whole_HW3), every), len(whole_HW3)}:
        image = SourceImage(encoded, POLICY, seen_whole=True)
        part_HW3 = image.pixels(eighths, rows=rows)
        assert image.size(eighths) == whole.size(eighths)
        assert rows <= len(part_HW3) <= len(whole_HW3)
        assert (part_HW3[:rows] == whole_HW3[:rows]).all(), (eighths, rows)
        left_out += len(part_HW3) < len(whole_HW3)
    return left_out


@pytest.mark.parametrize("eighths", SCALES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("side", [(8, 8), (16, 48), (17, 33), (61, 67), (5, 90)], ids=str)
def test_every_row_is_that_of_the_whole(side: tuple[int, int], layout: str, eighths: int) -> None:
    left_out = assert_rows_are_those_of_the_whole(jpeg(*side, layout), eighths)
    assert left_out or side[1] <= 16


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_more_than_two_rows_of_blocks_are_decoded_below_what_is_needed(layout: str) -> None:
    encoded = jpeg(64, 160, layout)
    for eighths in SCALES:
        for rows in range(1, 160 * eighths // FULL - 4 * eighths):
            image = SourceImage(encoded, POLICY, seen_whole=True)
            assert len(image.pixels(eighths, rows=rows)) <= rows + 2 * eighths


def segment(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, len(content) + 2) + content


# In front of the frame, as cameras write it: a small JPEG of their own in EXIF, notes, comments.
THUMBNAIL = segment(0xE1, b"Exif\0\0" + saved(flat("RGB", "red"), "JPEG"))
SEGMENTS = st.lists(
    st.sampled_from([THUMBNAIL, segment(0xFE, b""), segment(0xE2, b"\xff\xc0" * 40)]), max_size=12
).map(b"".join)
RESTARTS = st.sampled_from(
    [{}, *({f"restart_marker_{unit}": n} for unit in ("rows", "blocks") for n in (1, 3, 10))]
)


@settings(deadline=None, max_examples=150)
@given(
    st.integers(4, 90),
    st.integers(4, 120),
    st.integers(1, 100),
    st.sampled_from(["RGB", "L"]),
    st.integers(0, 2),
    st.booleans(),
    RESTARTS,
    SEGMENTS,
    st.sampled_from(SCALES),
)
def test_rows_are_those_of_the_whole_however_the_jpeg_was_made(
    width: int,
    height: int,
    quality: int,
    mode: str,
    subsampling: int,
    optimize: bool,
    restarts: dict[str, Any],
    segments: bytes,
    eighths: int,
) -> None:
    image = Image.fromarray(noisy(width, height, quality)).convert(mode)
    encoded = saved(
        image, "JPEG", quality=quality, subsampling=subsampling, optimize=optimize, **restarts
    )
    encoded = encoded[:20] + segments + encoded[20:]
    left_out = assert_rows_are_those_of_the_whole(encoded, eighths, every=5)
    assert left_out or height <= 32


def test_photos_are_shortened_in_proportion() -> None:
    encoded = saved(Image.fromarray(noisy(500, 375)), "JPEG", quality=90)
    for eighths in SCALES:
        left_out = assert_rows_are_those_of_the_whole(encoded, eighths, every=40)
        assert left_out >= (375 * eighths // FULL) // 40


def test_damage_that_costs_no_image_does_not_change_its_rows() -> None:
    """Wherever it lies: what stage one saw whole and Pillow lets pass, stage two sees the same."""
    generator = np.random.default_rng(7)
    used = damaged = 0
    for number in range(400):
        encoded = damage(jpeg(60, 80, LAYOUTS[number % 6], 60), generator)
        for eighths in (4, FULL):
            try:
                SourceImage(encoded, POLICY).pixels(eighths)
            except SampleError:
                continue
            assert_rows_are_those_of_the_whole(encoded, eighths, every=11)
            used += 1
            damaged += not is_clean(encoded)
    assert used > 200
    assert damaged > 100


def damage(encoded: bytes, generator: np.random.Generator) -> bytes:
    """Change a bit of the pixels' code, or put bytes or a marker in or take some out."""
    begin = encoded.index(b"\xff\xda") + 14
    place = int(generator.integers(begin, len(encoded) - 2))
    before, after = encoded[:place], encoded[place:]
    match int(generator.integers(5)):
        case 0:
            return before + bytes([after[0] ^ 1 << int(generator.integers(8))]) + after[1:]
        case 1:
            return before + generator.bytes(9) + after
        case 2:
            return before + bytes([0xFF, int(generator.integers(256))]) + after
        case 3:
            return before + after[9:]
        case _:
            return encoded[:-2] + b"more" + encoded[-2:]


def is_clean(encoded: bytes) -> bool:
    try:
        simplejpeg.decode_jpeg(encoded)
    except ValueError:
        return False
    return True


# --- what is left alone ----------------------------------------------------------------------


def by_component() -> bytes:
    """Return a sequential JPEG with one scan for each component: three grey ones in one."""
    parts = [saved(Image.fromarray(noisy(40, 64)[:, :, c]), "JPEG", quality=70) for c in range(3)]
    frame, scan = parts[0].index(b"\xff\xc0"), parts[0].index(b"\xff\xda")
    header = struct.pack(">BHHB", 8, 64, 40, 3) + bytes([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0])
    tables = parts[0][frame + 13 : scan]
    scans = [
        segment(0xDA, bytes([1, number, 0, 0, 63, 0])) + part[part.index(b"\xff\xda") + 10 : -2]
        for number, part in enumerate(parts, start=1)
    ]
    return parts[0][:frame] + segment(0xC0, header) + tables + b"".join(scans) + b"\xff\xd9"


def with_sampling(factors: int) -> bytes:
    """Return a JPEG of 64 x 64 pixels whose luma is sampled otherwise, with as many blocks."""
    encoded = bytearray(saved(Image.fromarray(noisy(64, 64)), "JPEG", subsampling=2))
    encoded[encoded.index(b"\xff\xc0") + 11] = factors
    return bytes(encoded)


UNUSUAL = {
    "progressive": saved(Image.fromarray(noisy(40, 64)), "JPEG", progressive=True),
    "a scan for each component": by_component(),
    "four times as many rows of luma": with_sampling(0x14),
    "CMYK": saved(Image.fromarray(noisy(40, 64)).convert("CMYK"), "JPEG"),
    "PNG": saved(Image.fromarray(noisy(40, 64)), "PNG"),
    "WebP": saved(Image.fromarray(noisy(40, 64)), "WEBP"),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_laid_out_in_another_way_is_decoded_whole(name: str) -> None:
    expected = np.asarray(Image.open(io.BytesIO(UNUSUAL[name])).convert("RGB"))
    image = SourceImage(UNUSUAL[name], POLICY, seen_whole=True)
    found = image.pixels(rows=1)
    assert found.shape == expected.shape
    assert (found == expected).all()
    for eighths in SCALES:
        assert_rows_are_those_of_the_whole(UNUSUAL[name], eighths, every=7)


def test_other_ways_to_lay_out_rows_are_left_alone() -> None:
    for name in ("progressive", "a scan for each component", "four times as many rows of luma"):
        assert shortened(UNUSUAL[name], 1, FULL) is None


@pytest.mark.parametrize("kind", [0xC2, 0xC3, 0xC5, 0xC9, 0xCA, 0xD8, 0x01, 0xDC, 0xFF])
def test_a_frame_of_another_kind_is_left_alone(kind: int) -> None:
    encoded = jpeg(16, 64, "420")
    assert shortened(encoded, 1, FULL)
    place = encoded.index(b"\xff\xc0") + 1
    assert shortened(encoded[:place] + bytes([kind]) + encoded[place + 1 :], 1, FULL) is None


def test_a_jpeg_cut_anywhere_in_its_header_is_left_alone() -> None:
    encoded = jpeg(16, 64, "420")
    for length in range(encoded.index(b"\xff\xda") + 4):
        assert shortened(encoded[:length], 1, FULL) is None


def test_deep_samples_and_a_frame_that_is_told_twice_are_left_alone() -> None:
    encoded = jpeg(16, 64, "420")
    place = encoded.index(b"\xff\xc0")
    frame = encoded[place : place + 19]
    assert shortened(encoded[: place + 4] + b"\x0c" + encoded[place + 5 :], 1, FULL) is None
    assert shortened(encoded[:place] + frame + encoded[place:], 1, FULL) is None


def test_the_bytes_given_stay_as_they_were() -> None:
    encoded = jpeg(16, 64, "420")
    before = bytes(bytearray(encoded))
    copy, height = shortened(encoded, 17, FULL) or (None, 0)
    assert copy is not None
    assert encoded == before
    assert height == 32
    assert [n for n in range(len(copy)) if copy[n] != encoded[n]] == [
        encoded.index(b"\xff\xc0") + 6
    ]
