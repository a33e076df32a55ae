"""Cached captions: what bare zarr finds, and the rows they are given, whatever the generation."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.cache import layout
from pipeline.cache.captions import located, read_captions
from pipeline.cache.reader import TargetCache
from pipeline.caption_sets import add_captions
from pipeline.errors import CacheError, CacheMismatchError
from pipeline.shards import find_shards, write_shards
from tests.audit.damage import DAMAGES
from tests.inputs import build, captioned_samples, captions_at


def test_bare_zarr_finds_the_captions_and_their_samples(captioned_cache: Path) -> None:
    captions = zarr.open_group(captioned_cache / "captions", mode="r")
    ((name, group),) = captions.groups()
    assert name == "test"
    assert set(group.array_keys()) == set(layout.CAPTION_ARRAYS)
    shapes = {"K": group["texts"].shape[0], "D": 16, "2": 2}
    for array, wanted in layout.CAPTION_ARRAYS.items():
        assert group[array].shape == tuple(shapes[axis] for axis in wanted.axes.split())
        if wanted.dtype != "str":
            assert group[array].dtype == wanted.dtype
    units = zarr.open_group(captioned_cache / "units", mode="r")
    for (place, ordinal), text in zip(group["samples"][...], group["texts"][...], strict=True):
        shard = group.attrs["shards"][place]
        unit = units[f"{group.attrs['split']}-{shard['name']}.eval.v0-0"]
        assert shard == unit.attrs["shard"]
        key = int(str(unit["keys"][...][ordinal]))
        assert text in captions_at(key)
    assert group.attrs["counts"] == {"samples": 12, "captioned": 11, "captions": shapes["K"]}


@pytest.fixture
def grown(tmp_path: Path, captioned_copy: Path, captioned_shards: Path, recipe_file: Path) -> Path:
    """The cache, with captions of train, extended by a train shard that stands first."""
    shards = Path(shutil.copytree(captioned_shards, tmp_path / "shards"))
    add_captions(captioned_copy, find_shards([str(shards)]), split="train", device="cpu")
    (path,) = write_shards(captioned_samples(6, seed=3), tmp_path / "own", "train", per_shard=6)
    path.rename(shards / "train-00000.tar")
    return build(captioned_copy, shards, recipe_file, extend=True)


def test_rows_are_those_of_the_opened_generation(grown: Path) -> None:
    before = TargetCache.open(grown, generation=0).captions("train")
    cache = TargetCache.open(grown)
    after = cache.captions("train")
    assert (after.rows_K == before.rows_K + 6).all()
    assert [int(str(cache.keys[row])) for row in after.rows_K] == before.rows_K.tolist()
    assert after.valid_K.all()
    assert after.shards == ("000000", "000001")  # not the new one


def test_captions_of_a_shard_that_a_generation_lacks_have_no_row_there(
    grown: Path, tmp_path: Path
) -> None:
    shards = find_shards([str(tmp_path / "shards")])
    with pytest.raises(CacheMismatchError, match=r"shards\.2\.name: cache has '\(absent\)'"):
        add_captions(grown, shards, split="train", device="cpu")
    assert add_captions(grown, shards, split="train", name="more", device="cpu")
    now = TargetCache.open(grown).captions("more")
    assert sorted(set(now.rows_K.tolist())) == [row for row in range(30) if row != 6 + 7]
    former = TargetCache.open(grown, generation=0).captions("more")
    new = now.rows_K < 6
    assert (former.rows_K[new] == -1).all()
    assert not former.valid_K[new].any()
    assert (former.rows_K[~new] == now.rows_K[~new] - 6).all()
    assert former.valid_K[~new].all()
    assert len(former.texts) == len(now.texts)


def test_captions_are_of_one_split_and_found_by_name(captioned_cache: Path) -> None:
    with pytest.raises(CacheError, match="'test' are of split test, not of train"):
        TargetCache.open(captioned_cache).captions("test")
    with pytest.raises(CacheError, match="did you mean 'test'"):
        TargetCache.open(captioned_cache, "test").captions("tset")


def test_a_cache_without_captions_says_how_to_add_some(sealed_cache: Path) -> None:
    with pytest.raises(CacheError, match="it has none: `beamclip captions add`"):
        TargetCache.open(sealed_cache, "test").captions("test")


def chunk(cache: Path, array: str) -> Path:
    files = (cache / "captions" / "test" / array / "c").rglob("*")
    return next(file for file in files if file.is_file())


@pytest.mark.parametrize("array", layout.CAPTION_ARRAYS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_chunk_is_an_error_and_never_a_number(
    captioned_copy: Path, array: str, damage: str
) -> None:
    DAMAGES[damage](chunk(captioned_copy, array))
    with pytest.raises(CacheError, match=r"captions/test.*(damaged|does not match its digests)"):
        read_captions(captioned_copy, "test")


def test_damaged_metadata_are_an_error(captioned_copy: Path) -> None:
    (captioned_copy / "captions" / "test" / "samples" / "zarr.json").write_text("{")
    with pytest.raises(CacheError, match="cannot open 'samples'"):
        read_captions(captioned_copy, "test")


@pytest.mark.parametrize(
    ("field", "value"), [("teacher", "0"), ("shards", [{"name": "000000", "sha256": "0"}])]
)
def test_captions_of_another_teacher_or_content_are_refused(
    captioned_copy: Path, field: str, value: object
) -> None:
    file = captioned_copy / "captions" / "test" / "zarr.json"
    metadata = json.loads(file.read_text(encoding="utf-8"))
    metadata["attributes"][field] = value
    file.write_text(json.dumps(metadata), encoding="utf-8")
    with pytest.raises(CacheMismatchError, match="made from something else") as caught:
        TargetCache.open(captioned_copy, "test").captions("test")
    assert [name for name, _, _ in caught.value.differences] == [
        "teacher" if field == "teacher" else "sha256.000000"
    ]


def test_a_split_without_rows_has_no_row_for_a_caption(captioned_cache: Path) -> None:
    stored = read_captions(captioned_cache, "test")
    found = located(stored, "test", [], np.zeros(0, bool), stored.teacher_digest)
    assert (found.rows_K == -1).all()
    assert not found.valid_K.any()
