"""scikit-learn's digits become shards: all of them, once, in a split that stays."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.known import write_known
from pipeline.decode import DecodePolicy, decode
from pipeline.errors import DataError
from tests.datasets.written import digests, read

DIGITS_TEST_KEYS = "5608f0d35a21e6b45d75115c89a7c22cc1c9b0fb6509d3fe315ff9b91cb41833"


def write_digits(out: Path) -> list[Path]:
    return write_known("digits", out).shards


@pytest.fixture(scope="module")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder)
    return folder


# --- digits --------------------------------------------------------------------------------------


def test_digits_are_all_there_once(digits_dir: Path) -> None:
    samples = read(digits_dir)
    assert {split: len(found) for split, found in samples.items()} == {"train": 1257, "test": 540}
    indices = [int(sample.key) for found in samples.values() for sample in found]
    assert sorted(indices) == list(range(1797))
    assert len(list(digits_dir.glob("*"))) == 5 + 2


def test_digits_labels_and_pixels_are_scikit_learns(digits_dir: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    for sample in [sample for found in read(digits_dir).values() for sample in found]:
        index = int(sample.key)
        assert sample.label() == digits.target[index]
        pixels = decode(sample.image().content, DecodePolicy())
        assert pixels.shape == (32, 32, 3)
        assert (pixels == pixels[:, :, :1]).all()
        blocks = pixels[:, :, 0].reshape(8, 4, 8, 4).mean((1, 3))
        assert np.abs(blocks - digits.images[index] * (255 / 16)).max() < 80  # of 255


def test_digits_split_is_fixed(digits_dir: Path) -> None:
    """Scores of two versions of this project are of the same test images."""
    keys = " ".join(sample.key for sample in read(digits_dir)["test"])
    assert sha256(keys.encode()).hexdigest() == DIGITS_TEST_KEYS


def test_every_digit_is_in_both_splits(digits_dir: Path) -> None:
    for found in read(digits_dir).values():
        assert np.bincount([sample.label() for sample in found]).min() > len(found) / 15


def test_digits_written_twice_are_the_same_bytes(digits_dir: Path, tmp_path: Path) -> None:
    assert digests(write_digits(tmp_path)) == digests(
        sorted(digits_dir.glob("test*")) + sorted(digits_dir.glob("train*"))
    )


def test_digits_are_not_mixed_with_other_shards(digits_dir: Path) -> None:
    before = digests(sorted(digits_dir.iterdir()))
    with pytest.raises(DataError, match="already holds 7 shards"):
        write_digits(digits_dir)
    assert digests(sorted(digits_dir.iterdir())) == before
