"""What the ablation is trained on, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.cache.reader import TargetCache
from pipeline.caption_sets import add_captions
from pipeline.errors import CacheError, CacheMismatchError
from pipeline.frozen.features import open_splits
from pipeline.frozen.texts import TextFeatureOptions
from pipeline.shards import find_shards


def test_images_and_captions_are_of_the_same_rows(colour_cache: Path) -> None:
    train, test = open_splits(colour_cache, "train", "test")
    assert (train.cache.split, train.cache.schedule_name, train.cache.num_views) == (
        *("train", "plain"),
        2,
    )
    assert (test.cache.split, test.cache.schedule_name) == ("test", "eval")
    assert train.told().tolist() == train.captions.rows_K.tolist() == list(range(160))
    assert (train.text_dim, train.captions.embeddings_KD.dtype) == (64, np.float32)


def test_an_epoch_takes_one_view_and_the_next_the_next(colour_cache: Path) -> None:
    train, _ = open_splits(colour_cache, "train", "test")
    cache, rows = TargetCache.open(colour_cache, "train"), np.array([5, 3])
    first, second = cache.targets(rows, 0), cache.targets(rows, 1)
    assert not np.array_equal(first, second)
    for epoch, wanted in enumerate((first, second, first)):
        np.testing.assert_array_equal(train.images(rows, epoch), wanted)


def test_texts_without_embeddings_are_refused_with_the_command(plain_cache: Path) -> None:
    with pytest.raises(CacheError, match=r"captions 'train'.*--split train --name train --text-en"):
        open_splits(plain_cache, "train", "test")


def test_a_teacher_that_reads_text_is_refused(captioned_cache: Path) -> None:
    with pytest.raises(CacheError, match="wants a cache of a teacher that sees images alone"):
        open_splits(captioned_cache, "test", "test")


def test_one_split_for_both_is_refused(colour_cache: Path) -> None:
    with pytest.raises(CacheError, match="are both of split test"):
        open_splits(colour_cache, "test", "test")


def test_captions_that_are_not_there_are_told(colour_cache: Path) -> None:
    with pytest.raises(CacheError, match="did you mean 'train'"):
        open_splits(colour_cache, "trian", "test")


def test_sets_of_two_encoders_are_refused(
    colour_cache: Path, colour_shards: Path, colour_texts: Path, tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(colour_cache, tmp_path / "cache"))
    spec = TextFeatureOptions(text=str(colour_texts), max_tokens=16, pooling="cls")
    shards = find_shards([str(colour_shards)])
    add_captions(cache, shards, name="cls", device="cpu", encoder=spec)
    with pytest.raises(CacheMismatchError) as caught:
        open_splits(cache, "train", "cls")
    assert caught.value.differences == [("pooling", "mean", "cls")]


@pytest.mark.parametrize("stale", ["teacher", "shards"])
def test_stale_features_are_refused(colour_cache: Path, tmp_path: Path, stale: str) -> None:
    cache = Path(shutil.copytree(colour_cache, tmp_path / "cache"))
    file = cache / "captions" / "train" / "zarr.json"
    metadata = json.loads(file.read_text(encoding="utf-8"))
    if stale == "teacher":
        metadata["attributes"]["teacher"] = "0"
    else:
        metadata["attributes"]["shards"][0]["sha256"] = "0"
    file.write_text(json.dumps(metadata), encoding="utf-8")
    with pytest.raises(CacheMismatchError, match="made from something else than this cache"):
        open_splits(cache, "train", "test")
