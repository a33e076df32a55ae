"""Features are made once for a key, and what is read back is what was written, or made anew."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.contracts import Features
from pipeline.feature_store import FeatureStore

KEY = {"encoder": {"weights": "aa"}, "shards": ["bb", "cc"]}


def made(seed: int = 0) -> Features:
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((2, 5, 3)).astype(np.float32)
    return Features(values[0], values[1], np.arange(5) % 3, np.arange(5))


def equal(one: Features, other: Features) -> bool:
    names = ("features_NF", "embedding_ND", "labels_N", "rows_N")
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


class Counted:
    """Makes features, and counts how often it was asked to."""

    def __init__(self, seed: int = 0) -> None:
        self.times, self.seed = 0, seed

    def __call__(self) -> Features:
        self.times += 1
        return made(self.seed)


def test_what_was_made_once_is_read_back_as_it_was(tmp_path: Path) -> None:
    compute = Counted()
    first = FeatureStore(tmp_path).get(KEY, compute)
    again = FeatureStore(tmp_path).get(KEY, compute)
    assert compute.times == 1
    assert equal(first, again)
    assert equal(again, made())


@pytest.mark.parametrize("other", [{"weights": "ab"}, {"weights": "aa", "mean": [0.5]}])
def test_another_key_is_made_for_itself(tmp_path: Path, other: dict[str, object]) -> None:
    store = FeatureStore(tmp_path)
    store.get(KEY, Counted(seed=0))
    assert equal(store.get({**KEY, "encoder": other}, Counted(seed=1)), made(1))
    assert len(list(tmp_path.iterdir())) == 2


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = content.find(made().features_NF.tobytes())
    assert place > 0
    content[place] ^= 1
    path.write_bytes(bytes(content))


def swap_arrays(path: Path) -> None:
    """Whole as a file, and not what was written: its checksums are right."""
    arrays = dict(np.load(path))
    arrays["labels_N"] = arrays["labels_N"][::-1].copy()
    np.savez(path, **arrays)


def lose_an_array(path: Path) -> None:
    arrays = dict(np.load(path))
    del arrays["rows_N"]
    np.savez(path, **arrays)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, swap_arrays, lose_an_array, empty])
def test_a_damaged_file_is_told_of_and_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    store, compute = FeatureStore(tmp_path), Counted()
    store.get(KEY, compute)
    (path,) = tmp_path.iterdir()
    damage(path)
    with caplog.at_level(logging.WARNING):
        assert equal(store.get(KEY, compute), made())
    assert compute.times == 2
    assert f"{path} is not as it was written" in caplog.text
    store.get(KEY, compute)
    assert compute.times == 2


def test_a_file_under_the_name_of_another_key_is_not_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = FeatureStore(tmp_path)
    store.get(KEY, Counted(seed=0))
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.unlink()
    store.get({"other": 1}, Counted(seed=1))
    (other,) = tmp_path.iterdir()
    other.write_bytes(content)
    assert equal(store.get({"other": 1}, Counted(seed=1)), made(1))
    assert "it is of another key" in caplog.text


def test_no_folder_keeps_nothing() -> None:
    store, compute = FeatureStore(None), Counted()
    assert equal(store.get(KEY, compute), store.get(KEY, compute))
    assert compute.times == 2


def test_a_folder_that_takes_nothing_costs_no_scores(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert equal(FeatureStore(tmp_path / "file" / "store").get(KEY, Counted()), made())
    assert "features are not kept" in caplog.text
