"""The seal: complete, consistent, and refused otherwise."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.cache import layout, writer
from pipeline.cache.reader import TargetCache, read_manifest
from pipeline.cache.seal import seal_cache
from pipeline.errors import CacheError, LossesError
from tests.inputs import build, encode, labelled_samples, square
from tests.trees import tree_digests


def test_the_index_is_what_the_units_say(sealed_cache: Path) -> None:
    cache = TargetCache.open(sealed_cache, "train", "eval")
    first = zarr.open_group(sealed_cache / "units" / "train-000001.eval.v0-0", mode="r")
    samples = first["samples"][...]
    rows = slice(14, 24)
    for place, name in enumerate(layout.SAMPLE_COLUMNS):
        np.testing.assert_array_equal(cache.column(name)[rows], samples[:, place])
    np.testing.assert_array_equal(cache.column("digest")[rows], first["digests"][...])
    assert cache.column("shard")[13:15].tolist() == [0, 1]
    assert cache.column("valid").all()
    assert cache.column("label").tolist() == [i % 3 for i in range(24)]


def test_sealing_again_changes_nothing(cache_copy: Path) -> None:
    before = tree_digests(cache_copy, "index")
    seal_cache(cache_copy, read_manifest(cache_copy), 0.0)
    assert tree_digests(cache_copy, "index") == before


def test_a_missing_unit_keeps_a_cache_unsealed(cache_copy: Path) -> None:
    writer.unseal(cache_copy, 0)
    shutil.rmtree(cache_copy / "units" / "train-000001.mild.v0-1")
    with pytest.raises(CacheError, match=r"train-000001\.mild\.v0-1 is missing"):
        seal_cache(cache_copy, read_manifest(cache_copy), 1.0)
    assert not layout.index_path(cache_copy, 0).exists()


def test_too_many_skips_keep_a_cache_unsealed_until_they_are_allowed(
    tmp_path: Path, recipe_file: Path
) -> None:
    from pipeline.shards import write_shards

    pairs = labelled_samples(9)
    pairs[4] = ("00004", {"png": b"<html>", "cls": b"1"})
    write_shards(pairs, tmp_path / "shards", "train", per_shard=9)
    cache = tmp_path / "cache"
    with pytest.raises(LossesError, match=r"1 of 9 train samples.*undecodable 1"):
        build(cache, tmp_path / "shards", recipe_file)
    with pytest.raises(CacheError, match="not sealed"):
        TargetCache.open(cache)
    build(cache, tmp_path / "shards", recipe_file, "max_skip_fraction=0.2")
    valid = TargetCache.open(cache).column("valid")
    assert np.flatnonzero(~valid).tolist() == [4]


def test_units_that_saw_different_samples_are_never_sealed_together(
    tmp_path: Path, recipe_file: Path, sealed_cache: Path, cache_copy: Path
) -> None:
    """The eval unit is of another content of the same shard than the training views."""
    from pipeline.shards import write_shards

    pairs = labelled_samples(24, seed=1)
    pairs[2] = ("00002", {"png": encode(square(2, seed=77)), "cls": b"2"})
    write_shards(pairs, tmp_path / "shards", "train", per_shard=14)
    write_shards(labelled_samples(12, seed=2), tmp_path / "shards", "test", per_shard=14)
    other = build(tmp_path / "other", tmp_path / "shards", recipe_file)
    writer.unseal(cache_copy, 0)
    name = "train-000000.eval.v0-0"
    shutil.rmtree(cache_copy / "units" / name)
    shutil.copytree(other / "units" / name, cache_copy / "units" / name)
    with pytest.raises(CacheError, match="disagree on digests"):
        seal_cache(cache_copy, read_manifest(cache_copy), 1.0)


def test_a_standing_seal_is_told_without_opening_arrays(cache_copy: Path) -> None:
    """Damage in arrays is found by reading; a rerun of a complete cache need not read all of it."""
    before = tree_digests(cache_copy, "index")
    for folder in (cache_copy / "units").glob("*/*/c"):
        shutil.rmtree(folder)
    counts = seal_cache(cache_copy, read_manifest(cache_copy), 0.0)
    assert (counts["train"].seen, counts["train"].skipped) == (24, 0)
    assert tree_digests(cache_copy, "index") == before
    with pytest.raises(CacheError, match="does not match its digest"):
        TargetCache.open(cache_copy).view(0)


def test_a_standing_seal_counts_skips_by_reason(tmp_path: Path, recipe_file: Path) -> None:
    from pipeline.shards import write_shards

    pairs = labelled_samples(9)
    pairs[4] = ("00004", {"png": b"<html>", "cls": b"1"})
    pairs[6] = ("00006", {"txt": b"no image"})
    write_shards(pairs, tmp_path / "shards", "train", per_shard=5)
    cache = build(tmp_path / "cache", tmp_path / "shards", recipe_file, "max_skip_fraction=0.3")
    for _ in range(2):
        (train,) = seal_cache(cache, read_manifest(cache), 0.3).values()
        assert (train.seen, train.skipped) == (9, 2)
        assert train.reasons == {"undecodable": 1, "no-image": 1}


def test_a_unit_that_counts_other_samples_than_it_holds_is_never_sealed(cache_copy: Path) -> None:
    path = cache_copy / "units" / "train-000000.eval.v0-0" / "zarr.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"seen": 14', '"seen": 13'), encoding="utf-8")
    assert text != path.read_text(encoding="utf-8")
    with pytest.raises(CacheError, match="count 13 samples, it holds 14"):
        seal_cache(cache_copy, read_manifest(cache_copy), 0.0)


@pytest.mark.parametrize("field", ["counts", "shard", "skips", "digests"])
def test_a_unit_without_some_of_its_attributes_counts_as_missing(
    cache_copy: Path, field: str
) -> None:
    path = cache_copy / "units" / "train-000000.eval.v0-0" / "zarr.json"
    metadata = json.loads(path.read_text(encoding="utf-8"))
    metadata["attributes"][field] = {}
    if field == "skips":
        metadata["attributes"][field] = [{"key": "x"}]
    path.write_text(json.dumps(metadata), encoding="utf-8")
    with pytest.raises(CacheError, match=r"train-000000\.eval\.v0-0 is missing"):
        seal_cache(cache_copy, read_manifest(cache_copy), 0.0)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink], ids=["flipped", "cut", "deleted"])
@pytest.mark.parametrize("column", ["label", "valid", "offset"])
def test_a_damaged_column_is_an_error_and_is_sealed_anew(
    cache_copy: Path, damage: Callable[[Path], None], column: str
) -> None:
    before = tree_digests(cache_copy, "index")
    damage(cache_copy / "index" / "000000" / f"train.{column}.npy")
    with pytest.raises(CacheError, match="run teacher-cache again"):
        TargetCache.open(cache_copy).column(column)
    seal_cache(cache_copy, read_manifest(cache_copy), 0.0)
    assert tree_digests(cache_copy, "index") == before


@pytest.mark.parametrize("array", ["samples", "valid", "digests"])
def test_a_lost_chunk_is_never_sealed_as_zeros(cache_copy: Path, array: str) -> None:
    shutil.rmtree(cache_copy / "index")
    shutil.rmtree(cache_copy / "units" / "test-000000.eval.v0-0" / array / "c")
    with pytest.raises(CacheError, match=rf"test-000000\.eval.*'{array}' does not match"):
        seal_cache(cache_copy, read_manifest(cache_copy), 0.0)
    assert not (cache_copy / "index").exists()


def test_a_manifest_edited_after_sealing_is_refused(cache_copy: Path) -> None:
    path = layout.manifest_path(cache_copy, 0)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"logit_scale": 14', '"logit_scale": 99'), encoding="utf-8")
    assert text != path.read_text(encoding="utf-8")
    with pytest.raises(CacheError, match="not the one that was sealed"):
        TargetCache.open(cache_copy)


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"manifest": 1}'])
def test_a_damaged_seal_is_an_error_and_is_written_anew(cache_copy: Path, text: str) -> None:
    before = tree_digests(cache_copy, "index")
    (cache_copy / "index" / "000000" / "seal.json").write_text(text)
    with pytest.raises(CacheError, match="is damaged"):
        TargetCache.open(cache_copy)
    seal_cache(cache_copy, read_manifest(cache_copy), 0.0)
    assert tree_digests(cache_copy, "index") == before


def test_a_seal_that_allowed_more_skips_is_taken_away(tmp_path: Path, recipe_file: Path) -> None:
    from pipeline.shards import write_shards

    pairs = labelled_samples(9)
    pairs[4] = ("00004", {"png": b"<html>", "cls": b"1"})
    write_shards(pairs, tmp_path / "shards", "train", per_shard=9)
    cache = build(tmp_path / "cache", tmp_path / "shards", recipe_file, "max_skip_fraction=0.2")
    with pytest.raises(LossesError, match="stays unsealed"):
        build(cache, tmp_path / "shards", recipe_file, "max_skip_fraction=0.1")
    with pytest.raises(CacheError, match="not sealed"):
        TargetCache.open(cache)
