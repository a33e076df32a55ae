"""Publishing: whole or not at all, once, and only what is right."""

import multiprocessing
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from pipeline.cache import layout, writer
from pipeline.errors import CacheError
from tests.trees import tree_digests

UNIT = layout.UnitId("train", "000000", "views", 0, 1)
ATTRIBUTES = {
    "fingerprint": "f",
    "shard": {"name": "000000", "bytes": 10240, "sha256": "0" * 64},
    "counts": {"seen": 5, "embedded": 5, "skipped": 0},
    "skips": [],
}


def unit_arrays(rows: int = 5, dim: int = 8) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    targets = generator.normal(size=(rows, 2, dim))
    targets /= np.linalg.norm(targets, axis=-1, keepdims=True)
    return {
        "targets": targets.astype(np.float16),
        "norms": generator.uniform(1, 9, (rows, 2)).astype(np.float32),
        "params": generator.random((rows, 2, len(layout.PARAM_COLUMNS)), dtype=np.float32),
        "valid": np.ones((rows, 2), bool),
        "keys": np.array([f"key-{i}" for i in range(rows)], dtype=object),
        "digests": np.arange(rows, dtype=np.uint64) + np.uint64(2**63),
        "samples": np.arange(rows * 6, dtype=np.int64).reshape(rows, 6),
    }


def test_a_published_unit_is_complete_and_leaves_no_temporary(tmp_path: Path) -> None:
    assert writer.publish_unit(tmp_path, UNIT, unit_arrays(), ATTRIBUTES)
    attributes = layout.unit_attributes(tmp_path, UNIT, "f")
    assert attributes is not None
    assert set(attributes["digests"]) == set(layout.UNIT_ARRAYS)
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_an_empty_unit_can_be_published(tmp_path: Path) -> None:
    assert writer.publish_unit(tmp_path, UNIT, unit_arrays(rows=0), ATTRIBUTES)
    assert layout.unit_attributes(tmp_path, UNIT, "f") is not None


def test_equal_arrays_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        writer.publish_unit(tmp_path / name, UNIT, unit_arrays(), ATTRIBUTES)
    assert tree_digests(tmp_path / "a", "units") == tree_digests(tmp_path / "b", "units")


def test_a_unit_done_twice_is_published_once(tmp_path: Path) -> None:
    arrays = unit_arrays()
    writer.publish_unit(tmp_path, UNIT, arrays, ATTRIBUTES)
    before = tree_digests(tmp_path, "units")
    other = {**arrays, "samples": arrays["samples"] + 1}
    assert not writer.publish_unit(tmp_path, UNIT, other, ATTRIBUTES)
    assert tree_digests(tmp_path, "units") == before
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_a_unit_of_another_fingerprint_does_not_count_as_published(tmp_path: Path) -> None:
    writer.publish_unit(tmp_path, UNIT, unit_arrays(), {**ATTRIBUTES, "fingerprint": "other"})
    assert layout.unit_attributes(tmp_path, UNIT, "f") is None


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 0.9])
def test_a_valid_target_must_be_a_normalised_vector(tmp_path: Path, value: float) -> None:
    arrays = unit_arrays()
    arrays["targets"][2, 1] = value
    with pytest.raises(CacheError, match="not a normalised finite vector"):
        writer.publish_unit(tmp_path, UNIT, arrays, ATTRIBUTES)
    assert not (tmp_path / "units").exists()


def test_an_invalid_target_may_be_nan(tmp_path: Path) -> None:
    arrays = unit_arrays()
    arrays["targets"][2, 1] = np.nan
    arrays["valid"][2, 1] = False
    assert writer.publish_unit(tmp_path, UNIT, arrays, ATTRIBUTES)


def test_a_second_manifest_of_one_generation_is_refused(tmp_path: Path) -> None:
    writer.create_manifest(tmp_path, {"generation": 0, "a": 1})
    with pytest.raises(FileExistsError):
        writer.create_manifest(tmp_path, {"generation": 0, "a": 2})


def _try_to_hold(cache: Path, answer: "multiprocessing.Queue[str]") -> None:
    try:
        with writer.exclusive(cache):
            answer.put("held")
    except CacheError as error:
        answer.put(str(error))


def test_a_second_writer_is_refused_at_once_and_admitted_later(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answer: multiprocessing.Queue[str] = context.Queue()

    def ask() -> str:
        process = context.Process(target=_try_to_hold, args=(tmp_path, answer))
        process.start()
        process.join(20)
        return answer.get(timeout=5)

    with writer.exclusive(tmp_path):
        assert "being written by another process" in ask()
    assert ask() == "held"


def test_unsealing_takes_the_seal_away(cache_copy: Path) -> None:
    writer.unseal(cache_copy, 0)
    assert not layout.index_path(cache_copy, 0).exists()
    writer.sweep(cache_copy)
    assert not (cache_copy / ".tmp").exists()


def test_a_folder_swept_from_under_its_writer_is_published_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another driver sweeps while the arrays are read back: what is written next makes the folder
    again, with nothing but the attributes that say that it is complete."""
    digests = layout.content_digests

    def sweep_once_read_back(arrays: Mapping[str, np.ndarray]) -> dict[str, str | list[str]]:
        found = digests(arrays)
        sweeps.append(len(sweeps))
        if len(sweeps) == 2:
            writer.sweep(tmp_path)
        return found

    sweeps: list[int] = []
    monkeypatch.setattr(layout, "content_digests", sweep_once_read_back)
    with pytest.raises(FileNotFoundError, match="another driver swept it away"):
        writer.publish_unit(tmp_path, UNIT, unit_arrays(), {"fingerprint": "f"})
    assert len(sweeps) == 2
    assert layout.unit_attributes(tmp_path, UNIT, "f") is None
    assert not (tmp_path / "units" / UNIT.name).exists()
    assert writer.publish_unit(tmp_path, UNIT, unit_arrays(), {"fingerprint": "f"})


def test_sweeping_leaves_nothing_temporary(tmp_path: Path) -> None:
    for name in ("train-000000.views.v0-1.aa", "swept.bb"):
        (tmp_path / ".tmp" / name / "targets").mkdir(parents=True)
        (tmp_path / ".tmp" / name / "targets" / "zarr.json").write_text("{")
    writer.sweep(tmp_path)
    assert not (tmp_path / ".tmp").exists()
    writer.sweep(tmp_path)


def test_what_a_killed_creation_of_a_manifest_left_is_swept(cache_copy: Path) -> None:
    (cache_copy / "manifest" / ".000000.json.0123456789abcdef.tmp").write_text("{")
    writer.sweep(cache_copy)
    assert [path.name for path in (cache_copy / "manifest").iterdir()] == ["000000.json"]
