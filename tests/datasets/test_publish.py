"""Whatever the dataset: splits by share, smaller images, all or nothing."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline.datasets.folder import image_folder
from pipeline.datasets.known import DATASETS, write_known
from pipeline.datasets.pixels import shrunk
from pipeline.datasets.publish import write_dataset
from pipeline.decode import DecodePolicy, decode
from pipeline.errors import DataError, SampleError
from tests.conftest import Invoke
from tests.datasets.written import digests, read
from tests.inputs import encode, square


def size(content: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(content)).size


def test_a_share_of_train_becomes_val_by_key(tmp_path: Path, beamclip: Invoke) -> None:
    whole = write_known("digits", tmp_path / "whole")
    parts = write_known("digits", tmp_path / "parts", val=0.2)
    told = beamclip("data", "digits", "--out", tmp_path / "told", "--val", 0.2, "--json")
    assert json.loads(told.out)["samples"] == parts.samples
    assert digests(sorted((tmp_path / "told").glob("*.tar"))) == digests(sorted(parts.shards))
    refused = beamclip("data", "digits", "--out", tmp_path / "never", "--val", 1)
    assert (refused.code, refused.err.startswith("Error: --val is a share")) == (1, True)
    assert parts.samples.keys() == {"train", "val", "test"}
    assert 0.15 < parts.samples["val"] / whole.samples["train"] < 0.25
    keys = {split: {s.key for s in found} for split, found in read(tmp_path / "parts").items()}
    assert not keys["train"] & keys["val"]
    assert keys["train"] | keys["val"] == {s.key for s in read(tmp_path / "whole")["train"]}
    more = write_known("digits", tmp_path / "more", val=0.4)
    assert keys["val"] < {s.key for s in read(tmp_path / "more")["val"]}
    assert more.samples["val"] > parts.samples["val"]
    for share in (-0.1, 1.0, 2):
        with pytest.raises(DataError, match="--val is a share of train"):
            write_known("digits", tmp_path / "never", val=share)
    with pytest.raises(DataError, match=r"split val .* no sample"):
        write_known("digits", tmp_path / "never", val=1e-9)
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_large_images_are_made_smaller_in_their_own_format(kind: str) -> None:
    large = encode(square(1, 5, 300, 200), kind)
    content = shrunk(large, 100)
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.size, image.mode) == (kind, (150, 100), "RGB")
        wanted = (
            Image.open(io.BytesIO(large))
            .convert("RGB")
            .resize((150, 100), Image.Resampling.LANCZOS)
        )
        apart = np.abs(np.asarray(image, int) - np.asarray(wanted, int)).mean()
        assert apart < (0.01 if kind == "PNG" else 6)
    assert shrunk(large, 200) == large
    assert shrunk(large, 1000) == large
    assert size(shrunk(encode(square(1, 5, 200, 40), kind), 30)) == (150, 30)


def encoded(mode: str, width: int, height: int) -> bytes:
    """Encode an image of a mode, as PNG or (CMYK) as JPEG; colour lies under its alpha."""
    pixels = square(2, 7, width, height)
    plain, grey = Image.fromarray(pixels), np.asarray(Image.fromarray(pixels).convert("L"))
    alpha = Image.fromarray((grey > 100).astype(np.uint8) * 255)
    image = plain.convert(mode) if mode in ("RGB", "L", "1", "P", "CMYK") else plain
    if mode == "LA":
        image = Image.merge("LA", (plain.convert("L"), alpha))
    elif mode == "RGBA":
        image = plain.copy()
        image.putalpha(alpha)
    elif mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_images_of_any_mode_are_made_smaller_from_the_pixels_that_stage_one_would_see(
    mode: str,
) -> None:
    """16-bit grey was white, and colours under alpha black."""
    content = encoded(mode, 90, 60)
    pixels = decode(content, DecodePolicy())
    wanted = np.asarray(Image.fromarray(pixels).resize((45, 30), Image.Resampling.LANCZOS))
    small = shrunk(content, 30)
    found = decode(small, DecodePolicy())
    assert found.shape == (30, 45, 3)
    if mode == "CMYK":
        assert np.abs(found.astype(int) - wanted).mean() < 6
    else:
        np.testing.assert_array_equal(found, wanted)
    kept = Image.open(io.BytesIO(small))
    assert kept.mode == ("L" if mode in ("1", "L", "LA", "I;16") else "RGB")


def test_an_image_beyond_the_caps_of_stage_one_may_be_made_small_enough_for_it() -> None:
    content = encoded("L", 9000, 100)
    with pytest.raises(SampleError, match="at most"):
        decode(content, DecodePolicy())
    assert size(shrunk(content, 50)) == (4500, 50)
    buffer = io.BytesIO()
    Image.new("1", (12_000, 8_000)).save(buffer, "PNG")  # more than Pillow decodes
    assert shrunk(buffer.getvalue(), 50) == buffer.getvalue()


def test_a_profile_stays_unless_it_is_of_colours_that_are_gone() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for mode, kept in (("RGB", profile), ("CMYK", None)):
        buffer = io.BytesIO()
        Image.fromarray(square(1, 5, 60, 40)).convert(mode).save(
            buffer, "JPEG", icc_profile=profile
        )
        small = Image.open(io.BytesIO(shrunk(buffer.getvalue(), 20)))
        assert small.info.get("icc_profile") == kept


@pytest.mark.parametrize("content", [b"", b"<html>", encode(square(0, 1), "JPEG")[:200], b"GIF89a"])
def test_what_cannot_be_decoded_stays_as_it_is_for_stage_one_to_record(content: bytes) -> None:
    assert shrunk(content, 8) == content


def test_max_px_reaches_every_image_and_only_images(tmp_path: Path, beamclip: Invoke) -> None:
    source = tmp_path / "photos"
    for number, side in enumerate((20, 80)):
        path = source / f"cat/{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(square(0, number, side * 2, side), "JPEG"))
    outcome = beamclip(
        "data", "folder", source, "--out", tmp_path / "out", "--max-px", 40, "--json"
    )
    assert json.loads(outcome.out)["samples"] == {"train": 2}
    small, large = (sample.image().content for sample in read(tmp_path / "out")["train"])
    assert (size(small), size(large)) == ((40, 20), (80, 40))
    assert small == (source / "cat/0.jpg").read_bytes()


def test_every_known_dataset_has_a_command_that_says_what_it_needs(beamclip: Invoke) -> None:
    listed = beamclip("data", "--help").out
    for name in DATASETS:
        assert f"  {name} " in listed
        told = beamclip("data", name, "--help").out
        assert "--from" in told
        assert "--max-px" in told


def test_commands_print_what_they_wrote(tmp_path: Path, beamclip: Invoke) -> None:
    out = tmp_path / "digits"
    assert beamclip("data", "digits", "--out", out).out == (
        f"7 shards in {out}: 540 test, 1,257 train\n"
    )
    again = beamclip("data", "digits", "--out", out)
    assert again.code == 1
    assert "already holds 7 shards" in again.err


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path, beamclip: Invoke) -> None:
    (tmp_path / "file").write_text("x")
    outcome = beamclip("data", "digits", "--out", tmp_path / "file" / "out")
    assert outcome.code == 1
    assert str(tmp_path / "file") in outcome.err


def test_killed_half_way_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    for number in range(40):
        (source / f"{number}.png").write_bytes(encode(square(0, number)))
    os.mkfifo(source / "999.png")  # the writer waits here for ever
    command = [sys.executable, "-m", "pipeline.cli", "data", "folder", str(source)]
    command += ["--out", str(tmp_path / "out"), "--per-shard", "10"]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob(".out.*/*.tar"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert not (tmp_path / "out").exists()
    (source / "999.png").unlink()
    written = write_dataset(image_folder(source), tmp_path / "out", per_shard=10)
    clean = write_dataset(image_folder(source), tmp_path / "clean", per_shard=10)
    assert digests(written.shards) == digests(clean.shards)
