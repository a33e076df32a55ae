"""Two caches are compared by what they were made from and by what they hold."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.audit.diff import diff_caches
from pipeline.cache import layout
from pipeline.cache.reader import TargetCache
from pipeline.errors import CacheError
from pipeline.shards import write_shards
from tests.audit.damage import chunk, flip
from tests.inputs import build, labelled_samples, make_teacher

MILD, TEST = "train-000000.mild.v0-1", "test-000000.eval.v0-0"


def test_a_cache_made_again_elsewhere_holds_the_same(
    sealed_cache: Path, shards_dir: Path, recipe_file: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(teacher_dir, tmp_path / "moved")
    shards = shutil.copytree(shards_dir, tmp_path / "shards", copy_function=shutil.copyfile)
    again = build(tmp_path / "c", Path(shards), recipe_file, f"teacher.model=local-dir:{moved}")
    found = diff_caches(sealed_cache, again)
    assert found.equal, found.text()
    assert "hold the same" in found.text()


def test_another_schedule_shows_in_fields_and_in_views(
    sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    other = build(tmp_path / "c", shards_dir, recipe_file, "schedule.seed=1")
    found = diff_caches(sealed_cache, other)
    assert found.fields == [("schedules.mild.seed", 0, 1)]
    assert [unit.unit for unit in found.units] == [MILD, "train-000001.mild.v0-1"]
    unit = found.units[0]
    assert unit.arrays == ["targets", "norms", "params"]
    assert unit.views == {"targets": [0, 1], "norms": [0, 1], "params": [0, 1]}
    mine, theirs = (
        np.stack([TargetCache.open(c).view(v)[:14] for v in (0, 1)]).astype(float)
        for c in (sealed_cache, other)
    )
    assert unit.max_abs == np.abs(mine - theirs).max() > 0
    lengths = np.linalg.norm(mine, axis=-1) * np.linalg.norm(theirs, axis=-1)
    assert unit.min_cosine == pytest.approx(((mine * theirs).sum(axis=-1) / lengths).min())
    assert "targets views 0-1" in found.text()


def test_another_teacher_shows_in_anchors_and_targets_and_not_in_params(
    sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    teacher = make_teacher(tmp_path / "other", seed=1)
    other = build(tmp_path / "c", shards_dir, recipe_file, f"teacher.model=local-dir:{teacher}")
    found = diff_caches(sealed_cache, other)
    assert [name for name, _, _ in found.fields] == ["teacher.weights_sha256"]
    assert {tuple(unit.arrays) for unit in found.units} == {("targets", "norms")}
    assert set(found.anchors) == {"shapes-context", "shapes-plain"}
    assert found.anchors["shapes-plain"] == ["digests.embeddings", "teacher"]


def test_other_shards_and_more_views_show_as_units_of_one_side(
    sealed_cache: Path, recipe_file: Path, tmp_path: Path
) -> None:
    write_shards(labelled_samples(14, seed=1), tmp_path / "shards", "train", per_shard=14)
    other = build(tmp_path / "c", tmp_path / "shards", recipe_file, "views=3")
    found = diff_caches(sealed_cache, other)
    assert ("splits.train.views.mild.0.1", 1, 2) in found.fields
    assert any(name.startswith("splits.train.shards.000001") for name, _, _ in found.fields)
    assert f"units/{TEST}" in found.only_a
    assert found.only_b == ["units/train-000000.mild.v0-2"]
    assert found.units == []  # the eval unit of the shared shard holds the same


def test_another_sample_shows_in_every_array_that_tells_of_it(
    sealed_cache: Path, recipe_file: Path, tmp_path: Path
) -> None:
    pairs = labelled_samples(12, seed=2)
    pairs[5] = ("00005", {"png": b"<html>", "cls": b"2"})
    write_shards(labelled_samples(24, seed=1), tmp_path / "shards", "train", per_shard=14)
    write_shards(pairs, tmp_path / "shards", "test", per_shard=14)
    found = diff_caches(sealed_cache, build(tmp_path / "c", tmp_path / "shards", recipe_file))
    (unit,) = found.units
    assert (unit.unit, unit.views) == (TEST, {"targets": [0], "norms": [0], "params": [0]})
    assert unit.arrays == ["targets", "norms", "params", "valid", "digests", "samples"]
    assert ("counts.skipped", 0, 1) in unit.attributes
    assert unit.max_abs == 0  # of the rows that are valid in both


def test_targets_that_are_equal_are_not_measured(cache_copy: Path) -> None:
    other = Path(shutil.copytree(cache_copy, cache_copy.with_name("other")))
    group = zarr.open_group(other / "units" / MILD, mode="r+")
    group["valid"][3, 0] = False  # type: ignore[index]
    arrays = {name: np.asarray(group[name][...]) for name in layout.UNIT_ARRAYS}  # type: ignore[index]
    group.attrs["digests"] = layout.content_digests(arrays)
    (unit,) = diff_caches(cache_copy, other).units
    assert (unit.arrays, unit.max_abs) == (["valid"], None)


def test_damage_is_a_difference(cache_copy: Path, sealed_cache: Path) -> None:
    (cache_copy / "units" / MILD / "zarr.json").write_text("[]")
    (cache_copy / "anchors" / "shapes-plain" / "zarr.json").write_text("[]")
    found = diff_caches(sealed_cache, cache_copy)
    assert found.only_a == [f"units/{MILD}"]
    assert set(found.anchors) == {"shapes-plain"}
    assert not found.equal


def test_damage_met_while_measuring_is_told(
    sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    other = build(tmp_path / "c", shards_dir, recipe_file, "schedule.seed=1")
    flip(chunk(other, MILD, "targets", 0))
    assert [p.place for p in diff_caches(sealed_cache, other).problems] == [f"units/{MILD}"]


def test_no_cache_is_the_users_error(sealed_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no cache in"):
        diff_caches(sealed_cache, tmp_path)
