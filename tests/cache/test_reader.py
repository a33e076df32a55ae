"""The reader gives what was published, and refuses what was not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.cache import layout
from pipeline.cache.reader import TargetCache, read_anchors, read_manifest
from pipeline.errors import CacheError
from pipeline.schedule import EVAL, EvalSchedule, Schedule, ViewParams
from tests.inputs import build


@pytest.fixture
def train(sealed_cache: Path) -> TargetCache:
    return TargetCache.open(sealed_cache)


def test_a_cache_opens_with_its_sizes(train: TargetCache) -> None:
    assert (len(train), train.dim, train.num_views) == (24, 16, 2)
    assert isinstance(train.schedule, Schedule)
    assert train.schedule_name == "mild"
    assert train.logit_scale > 1
    assert [shard.rows for shard in train.shards] == [14, 10]


def test_the_eval_view_of_every_split_opens(sealed_cache: Path) -> None:
    for split, rows in (("train", 24), ("test", 12)):
        cache = TargetCache.open(sealed_cache, split, EVAL)
        assert (len(cache), cache.num_views) == (rows, 1)
        assert isinstance(cache.schedule, EvalSchedule)


def test_targets_are_normalised_float32_of_the_rows_asked_for(train: TargetCache) -> None:
    rows = np.array([20, 3, 3])
    targets = train.targets(rows, 1)
    assert targets.dtype == np.float32
    assert targets.shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(targets, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(targets, train.view(1)[rows], atol=1e-3)  # before float16's norm


def test_the_units_of_a_view_are_the_view(train: TargetCache) -> None:
    parts = list(train.iter_units(1))
    assert [rows for rows, _ in parts] == [slice(0, 14), slice(14, 24)]
    np.testing.assert_array_equal(np.concatenate([part for _, part in parts]), train.view(1))


def test_as_dask_is_every_view_side_by_side(train: TargetCache) -> None:
    array = train.as_dask()
    assert array.shape == (24, 2, 16)
    np.testing.assert_array_equal(array[:, 1].compute(), train.view(1))


def test_view_params_are_what_the_schedule_decides(train: TargetCache) -> None:
    key, row = str(train.keys[15]), 15
    width, height = int(train.column("width")[row]), int(train.column("height")[row])
    wanted = train.schedule.params(key, 1, width, height)
    found = ViewParams(*train.view_params(np.array([row]), 1)[0].tolist())
    assert found == wanted


def test_rows_are_found_by_shard_and_ordinal_and_by_key(train: TargetCache) -> None:
    row = train.row_of("000001", 3)
    assert row == 17
    assert train.rows_of(str(train.keys[row])).tolist() == [17]
    assert train.rows_of("no such key").size == 0


@pytest.mark.parametrize(("shard", "ordinal"), [("000001", 10), ("000001", -1), ("9", 0)])
def test_a_sample_that_is_not_there_is_an_error(
    train: TargetCache, shard: str, ordinal: int
) -> None:
    with pytest.raises(CacheError, match="no sample"):
        train.row_of(shard, ordinal)


def test_anchors_carry_their_texts(sealed_cache: Path) -> None:
    anchors = read_anchors(sealed_cache, "shapes-plain")
    assert anchors.class_names == ("red square", "green square", "blue square")
    assert anchors.texts[1] == ("A photo of a green square.", "A drawing of a green square.")
    np.testing.assert_allclose(np.linalg.norm(anchors.embeddings_AD, axis=1), 1, atol=1e-6)
    assert anchors.token_counts_AT.shape == (3, 2)


def test_decoded_views_are_shared_through_the_scratch_folder(
    train: TargetCache, sealed_cache: Path, tmp_path: Path
) -> None:
    train.view(0)
    files = list((tmp_path / "scratch").glob("*.npy"))
    assert len(files) == 1
    before = files[0].stat().st_mtime_ns
    TargetCache.open(sealed_cache).view(0)
    assert files[0].stat().st_mtime_ns == before


def test_a_view_beyond_the_last_is_an_error(train: TargetCache) -> None:
    with pytest.raises(CacheError, match="views 0 to 1, not 2"):
        train.view(2)


def test_wrong_names_are_answered_with_the_nearest(sealed_cache: Path) -> None:
    with pytest.raises(CacheError, match="did you mean 'train'"):
        TargetCache.open(sealed_cache, "trian")
    with pytest.raises(CacheError, match="did you mean 'mild'"):
        TargetCache.open(sealed_cache, "train", "milde")
    with pytest.raises(CacheError, match="did you mean 'shapes-plain'"):
        read_anchors(sealed_cache, "shapes-plian")


def test_no_cache_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="teacher-cache"):
        TargetCache.open(tmp_path)


def test_an_unsealed_cache_is_refused(cache_copy: Path) -> None:
    shutil.rmtree(cache_copy / "index")
    with pytest.raises(CacheError, match="not sealed"):
        TargetCache.open(cache_copy)


def test_a_newer_format_is_refused_with_what_to_do(cache_copy: Path) -> None:
    path = layout.manifest_path(cache_copy, 0)
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**manifest, "version": 99}), encoding="utf-8")
    with pytest.raises(CacheError, match="found beamclip-cache version 99"):
        read_manifest(cache_copy)


def chunk_files(cache: Path) -> list[Path]:
    folder = cache / "units" / "train-000000.mild.v0-1" / "targets" / "c"
    return sorted(file for file in folder.rglob("*") if file.is_file())


def test_a_flipped_bit_is_an_error_naming_unit_and_array(cache_copy: Path) -> None:
    file = chunk_files(cache_copy)[0]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CacheError, match=r"train-000000\.mild.*'targets'.*damaged"):
        TargetCache.open(cache_copy).view(0)


@pytest.mark.parametrize("size", [0, 2, 100])
def test_a_truncated_chunk_is_an_error(cache_copy: Path, size: int) -> None:
    file = chunk_files(cache_copy)[0]
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CacheError, match="targets"):
        TargetCache.open(cache_copy).view(0)


def test_a_deleted_chunk_is_an_error_and_not_silence(cache_copy: Path) -> None:
    chunk_files(cache_copy)[1].unlink()
    TargetCache.open(cache_copy).view(0)  # the other view is whole
    with pytest.raises(CacheError, match="view 1 of 'targets' does not match its digest"):
        TargetCache.open(cache_copy).view(1)


def test_two_swapped_chunks_are_an_error(cache_copy: Path) -> None:
    first, second = chunk_files(cache_copy)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(CacheError, match="does not match its digest"):
        TargetCache.open(cache_copy).view(0)


def test_a_unit_of_another_run_in_its_place_is_an_error(
    cache_copy: Path, tmp_path: Path, shards_dir: Path, recipe_file: Path
) -> None:
    other = build(tmp_path / "other", shards_dir, recipe_file, "schedule.seed=1")
    name = "train-000000.mild.v0-1"
    shutil.rmtree(cache_copy / "units" / name)
    shutil.copytree(other / "units" / name, cache_copy / "units" / name)
    with pytest.raises(CacheError, match="is not the unit that was sealed"):
        TargetCache.open(cache_copy).view(0)


def test_damaged_metadata_is_an_error(cache_copy: Path) -> None:
    (cache_copy / "units" / "train-000001.mild.v0-1" / "zarr.json").write_text("{")
    with pytest.raises(CacheError, match=r"train-000001\.mild"):
        TargetCache.open(cache_copy).view(0)


def test_a_copied_cache_reads_the_same(train: TargetCache, cache_copy: Path) -> None:
    copy = TargetCache.open(cache_copy)
    assert copy.digest == train.digest
    np.testing.assert_array_equal(copy.view(0), train.view(0))


def test_bare_zarr_finds_every_array_that_the_layout_names(sealed_cache: Path) -> None:
    units = zarr.open_group(sealed_cache / "units", mode="r")
    names = [name for name, _ in units.groups()]
    assert len(names) == 5
    for name in names:
        unit = units[name]
        assert set(unit.array_keys()) == set(layout.UNIT_ARRAYS)
        rows, views = unit["targets"].shape[:2]
        for array, wanted in layout.UNIT_ARRAYS.items():
            stored = unit[array]
            assert len(stored.shape) == len(wanted.axes.split())
            assert stored.shape[0] == rows
            if wanted.dtype != "str":
                assert stored.dtype == wanted.dtype
        assert unit["targets"].chunks == (rows, 1, 16)
        assert unit["params"].shape == (rows, views, len(layout.PARAM_COLUMNS))
        assert unit.attrs["counts"]["seen"] == rows
    anchors = zarr.open_group(sealed_cache / "anchors", mode="r")
    for _, group in anchors.groups():
        assert set(group.array_keys()) == set(layout.ANCHOR_ARRAYS)
