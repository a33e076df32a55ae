"""Damaged, hostile and unusual images end to end: a recorded skip each, or the row they deserve."""

import io
import json
import os
import shutil
import subprocess
import sys
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.cache import layout
from pipeline.cache.reader import TargetCache, read_manifest
from pipeline.shards import write_shards
from tests.conftest import Invoke
from tests.faults.commands import teacher_cache
from tests.faults.law import Law, check_law
from tests.images import bombs, chunk, flat, picture, png, saved
from tests.inputs import build, encode, labelled_samples, square

EVAL, MILD = "train-000000.eval.v0-0", "train-000000.mild.v0-1"
ROOT = Path(__file__).parents[2]
PNG, JPEG = encode(square(0, 1), "PNG"), encode(square(0, 1), "JPEG")
WEBP = saved(Image.fromarray(square(0, 1)), "WEBP")
PLENTY = 64 << 20  # bytes that a small file inflates to


@cache
def deflated() -> bytes:
    """Return PLENTY zero bytes, compressed to a thousandth."""
    return zlib.compress(bytes(PLENTY), 9)


def with_chunk(name: bytes, content: bytes) -> bytes:
    """Return PNG with a chunk before its pixels."""
    place = PNG.index(b"IDAT") - 4
    return PNG[:place] + chunk(name, content) + PNG[place:]


def overfull() -> bytes:
    """Return a 16x16 PNG whose pixels go on for PLENTY bytes."""
    head = png(16, 16, 8, 0, bytes(16), rows=0).partition(b"IDAT")[0][:-4]
    return head + chunk(b"IDAT", deflated()) + chunk(b"IEND", b"")


def flipped(encoded: bytes, place: int) -> bytes:
    return encoded[:place] + bytes([encoded[place] ^ 0x55]) + encoded[place + 1 :]


def jpeg_of_size(width: int, height: int) -> bytes:
    """Return JPEG with another size written in its header."""
    place = JPEG.index(b"\xff\xc0") + 5
    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return JPEG[:place] + size + JPEG[place + 4 :]


@cache
def bad() -> dict[str, tuple[str, bytes, str]]:
    """Return key -> (extension, encoded bytes, the reason of its skip)."""
    return {
        "nothing": ("jpg", b"", "empty"),
        "zeros": ("jpg", bytes(4096), "undecodable"),
        "page": ("jpg", b"<!DOCTYPE html><html>404 Not Found</html>" * 20, "undecodable"),
        "json": ("png", b'{"error": "rate limited"}', "undecodable"),
        "vectors": ("png", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "undecodable"),
        "pdf": ("jpg", b"%PDF-1.7\n" + bytes(500), "undecodable"),
        "gif": ("jpg", saved(flat("RGB", "red"), "GIF"), "undecodable"),
        "bmp": ("jpg", saved(flat("RGB", "red"), "BMP"), "undecodable"),
        "tiff": ("jpg", saved(flat("RGB", "red"), "TIFF"), "undecodable"),
        "postscript": ("jpg", saved(flat("RGB", "red"), "EPS"), "undecodable"),
        "cut-jpeg": ("jpg", JPEG[: len(JPEG) // 2], "truncated"),
        "cut-and-ended": ("jpg", JPEG[: len(JPEG) * 4 // 5] + JPEG[-2:], "truncated"),
        "cut-png": ("png", PNG[: len(PNG) // 2], "truncated"),
        "cut-webp": ("webp", WEBP[: len(WEBP) // 2], "undecodable"),
        "marker-alone": ("jpg", b"\xff\xd8\xff", "undecodable"),
        "signature-alone": ("png", PNG[:8], "undecodable"),
        "wrong-header-check": ("png", flipped(PNG, 20), "undecodable"),
        "no-width-png": ("png", png(0, 16, 8, 0, b""), "undecodable"),
        "no-width-jpeg": ("jpg", jpeg_of_size(0, 16), "undecodable"),
        "claims-more-lines": ("jpg", jpeg_of_size(40, 1_900), "truncated"),
        **{f"bomb-{n}": ("jpg", bomb, "too-many-pixels") for n, bomb in enumerate(bombs())},
        "jpeg-bomb": ("jpg", jpeg_of_size(65_000, 65_000), "too-many-pixels"),
        "text-bomb": ("png", with_chunk(b"zTXt", b"a\0\0" + deflated()), "undecodable"),
        "profile-bomb": ("png", with_chunk(b"iCCP", b"a\0\0" + deflated()), "undecodable"),
        "one-pixel": ("png", png(1, 1, 8, 0, bytes(1)), "too-small"),
        "three-by-nine": ("png", png(3, 9, 8, 0, bytes(3)), "too-small"),
        "line": ("png", png(60_000, 1, 8, 0, bytes(60_000)), "too-small"),
        "strip": ("png", png(1_001, 20, 8, 0, bytes(1_001)), "too-long"),
        "column-jpeg": ("jpg", saved(flat("L", 9, (20, 1_001)), "JPEG"), "too-long"),
        "strip-of-pixels": ("png", png(60_000, 1_000, 8, 0, b"", rows=1), "too-many-pixels"),
    }  # fmt: skip


GREYS = np.repeat(np.arange(32, dtype=np.uint8) * 7, 32).reshape(32, 32)
COLOURS = Image.fromarray(picture(32, 32)).quantize(16)
BITS = Image.fromarray(GREYS).convert("1")
CMYK = saved(Image.fromarray(picture(32, 32)).convert("CMYK"), "JPEG", quality=95)
GREY_ALPHA = Image.fromarray(np.dstack([GREYS, GREYS.T]))
EXACT = {"lossless": True, "exact": True}
ALPHA = Image.fromarray(np.dstack([picture(32, 32), GREYS]))
SMALLEST = png(4, 4, 8, 0, bytes([1, 90, 8, 200]))
LONGEST = png(1_000, 20, 8, 0, bytes(range(250)) * 4)
DEEP = Image.fromarray(GREYS.astype(np.uint16) * 256 + 255)


def as_rgb(image: Image.Image) -> bytes:
    return saved(image.convert("RGB"), "PNG")


def as_pillow_reads(encoded: bytes) -> bytes:
    return as_rgb(Image.open(io.BytesIO(encoded)))


@cache
def odd() -> dict[str, tuple[str, bytes, bytes]]:
    """Return key -> (extension, encoded bytes, the same pixels as a plain 8-bit RGB PNG)."""
    return {
        "cmyk": ("jpg", CMYK, as_pillow_reads(CMYK)),
        "grey": ("png", encode(GREYS), as_rgb(Image.fromarray(GREYS))),
        "grey-jpeg": ("jpg", encode(GREYS, "JPEG"), as_pillow_reads(encode(GREYS, "JPEG"))),
        "grey-alpha": ("png", saved(GREY_ALPHA, "PNG"), as_rgb(Image.fromarray(GREYS))),
        "palette": ("png", saved(COLOURS, "PNG"), as_rgb(COLOURS)),
        "clear-palette": ("png", saved(COLOURS, "PNG", transparency=3), as_rgb(COLOURS)),
        "bits": ("png", saved(BITS, "PNG"), as_rgb(BITS)),
        "deep-grey": ("png", saved(DEEP, "PNG"), as_rgb(Image.fromarray(GREYS))),
        "alpha": ("png", saved(ALPHA, "PNG"), encode(picture(32, 32))),
        "alpha-webp": ("webp", saved(ALPHA, "WEBP", **EXACT), encode(picture(32, 32))),
        "png-named-jpg": ("jpg", PNG, PNG),
        "jpeg-named-png": ("png", JPEG, as_pillow_reads(JPEG)),
        "webp-named-jpg": ("jpg", WEBP, as_pillow_reads(WEBP)),
        "smallest": ("png", SMALLEST, as_pillow_reads(SMALLEST)),
        "longest": ("png", LONGEST, as_pillow_reads(LONGEST)),
        "overfull": ("png", overfull(), as_rgb(flat("L", 0))),
    }  # fmt: skip


WHITE = ("white", {"png": encode(np.full((32, 32, 3), 255, np.uint8))})


def samples() -> list[tuple[str, dict[str, bytes]]]:
    """Return every bad image among good ones, and every odd one beside its plain twin."""
    pairs: list[tuple[str, dict[str, bytes]]] = [WHITE]
    for key, (extension, encoded, _) in bad().items():
        pairs += [(key, {extension: encoded}), (f"after-{key}", {"png": PNG})]
    for key, (extension, encoded, plain) in odd().items():
        pairs += [(key, {extension: encoded}), (f"plain-{key}", {"png": plain})]
    return pairs


IN_ANOTHER_PROCESS = """
import json, sys
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from pipeline.errors import LossesError
from tests.inputs import build
cache, shards, plain, recipe = map(Path, sys.argv[1:])
build(cache.with_name("plain"), plain, recipe)
before = getrusage(RUSAGE_SELF).ru_maxrss
try:
    build(cache, shards, recipe)
except LossesError as error:
    said = str(error)
grown_kib = getrusage(RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"said": said, "grown_kib": grown_kib}))
"""


class Built:
    """A cache of `samples()`, made in a process that rendered itself and was measured."""

    def __init__(self, folder: Path, shards: Path, outcome: dict[str, Any]) -> None:
        self.cache, self.shards, self.outcome = folder / "cache", shards, outcome
        self.law = check_law(self.cache, exit_code=3, tars=shards.glob("*.tar"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> Built:
    folder = tmp_path_factory.mktemp("images")
    pairs = samples()
    write_shards(pairs, folder / "shards", "train", per_shard=len(pairs))
    write_shards(labelled_samples(40), folder / "good", "train", per_shard=40)
    result = subprocess.run(
        [
            *(sys.executable, "-W", "error", "-c", IN_ANOTHER_PROCESS),
            *map(str, (folder / "cache", folder / "shards", folder / "good", recipe_file)),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return Built(folder, folder / "shards", json.loads(result.stdout))


def attributes(cache: Path, unit: str) -> dict[str, Any]:
    """Return what a unit says of itself, every skip with its detail."""
    manifest = read_manifest(cache)
    planned = next(u for u in layout.planned_units(manifest) if u.name == unit)
    found = layout.unit_attributes(cache, planned, layout.fingerprint(manifest))
    assert found is not None
    return found


def reasons(law: Law, unit: str, keys: list[str]) -> dict[str, str]:
    """Return the reason of each skip by key."""
    return {keys[ordinal]: reason for ordinal, reason in law.reasons[unit].items()}


def test_every_bad_image_is_a_skip_with_its_reason_and_costs_no_other(built: Built) -> None:
    keys = [key for key, _ in samples()]
    for unit in (EVAL, MILD):
        found = reasons(built.law, unit, keys)
        assert found == {key: reason for key, (_, _, reason) in bad().items()}
    assert built.law.seen == {"train-000000": len(keys)}
    assert built.law.skipped == {"train-000000": len(bad())}


def test_bombs_are_refused_before_there_is_room_for_them(built: Built) -> None:
    """The least of them takes 81 MB as grey and 243 MB as RGB, the inflated ones 67 MB."""
    assert built.outcome["grown_kib"] < 48 * 1024


def test_too_many_bad_images_leave_the_cache_unsealed_until_they_are_allowed(
    built: Built, tmp_path: Path, recipe_file: Path, beamclip: Invoke
) -> None:
    assert f"{len(bad())} of {len(samples())} train samples were skipped" in built.outcome["said"]
    assert not built.law.sealed
    assert not built.law.missing
    cache = Path(shutil.copytree(built.cache, tmp_path / "cache"))
    command = ("teacher-cache", "--cache", cache, "--shards", built.shards)
    command += ("--recipe", recipe_file, "--device", "cpu")
    refused = beamclip(*command)
    assert refused.code == 3
    assert f"too-many-pixels {sum(r == 'too-many-pixels' for _, _, r in bad().values())}" in (
        refused.err
    )
    assert check_law(cache, exit_code=refused.code) == built.law
    allowed = beamclip(*command, "--set", "max_skip_fraction=0.9")
    assert allowed.code == 0, allowed.err
    assert check_law(cache, exit_code=0).arrays == built.law.arrays


def test_odd_kinds_of_images_become_the_targets_of_their_pixels(
    built: Built, tmp_path: Path, recipe_file: Path
) -> None:
    """Each against a plain PNG of the pixels that the policy makes of it; none is white."""
    cache = Path(shutil.copytree(built.cache, tmp_path / "cache"))
    build(cache, built.shards, recipe_file, "max_skip_fraction=0.9")
    opened = TargetCache.open(cache, "train", "eval")

    def target(key: str) -> np.ndarray:
        (row,) = opened.rows_of(key)
        assert opened.column("valid")[row], key
        return opened.targets(np.array([row]), 0)[0]

    for key in odd():
        np.testing.assert_allclose(target(key), target(f"plain-{key}"), atol=1e-3, err_msg=key)
        assert target(key) @ target("white") < 0.995, key


@pytest.mark.slow
def test_processes_that_render_skip_the_same_images_in_the_same_words(
    built: Built, tmp_path: Path, recipe_file: Path
) -> None:
    done = teacher_cache(tmp_path / "cache", built.shards, recipe_file, "--renderers", 2)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert check_law(tmp_path / "cache", exit_code=done.returncode) == built.law
    for unit in (EVAL, MILD):
        assert attributes(tmp_path / "cache", unit) == attributes(built.cache, unit)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"),
    [("decode-00003:crash", "decoder-died"), ("decode-00003:hang", "decoder-hung")],
)
def test_an_image_that_ends_its_decoder_is_a_skip_and_the_run_goes_on(
    tmp_path: Path, recipe_file: Path, fault: str, reason: str
) -> None:
    shards, cache = tmp_path / "shards", tmp_path / "cache"
    write_shards(labelled_samples(12), shards, "train", per_shard=12)
    done = teacher_cache(
        *(cache, shards, recipe_file, "--renderers", 1),
        environment={"BEAMCLIP_FAULT_POINT": fault, "BEAMCLIP_DECODE_SECONDS": "4"},
    )
    assert done.returncode == 0, done.stderr
    assert f"1 skipped, {reason} 1" in done.stdout
    law = check_law(cache, exit_code=0, tars=shards.glob("*.tar"))
    assert law.reasons == {EVAL: {3: reason}, MILD: {3: reason}}

    clean = build(tmp_path / "clean", shards, recipe_file)
    others = np.delete(np.arange(12), 3)
    for schedule, views in (("eval", 1), ("mild", 2)):
        found, wanted = (TargetCache.open(c, "train", schedule) for c in (cache, clean))
        for view in range(views):
            assert np.array_equal(found.view(view)[others], wanted.view(view)[others])
    # A recorded skip is no loss, so it stays; made anew, the units are those of a clean run.
    build(cache, shards, recipe_file)
    assert check_law(cache, exit_code=0) == law
    shutil.rmtree(cache / "units")
    build(cache, shards, recipe_file)
    assert check_law(cache, exit_code=0).arrays == check_law(clean, exit_code=0).arrays
