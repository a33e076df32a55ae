"""Info tells what a cache is, finished or not."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.audit.info import cache_info
from pipeline.cache import writer
from pipeline.cache.reader import TargetCache, read_anchors
from pipeline.errors import CacheError
from pipeline.features import teacher_features
from pipeline.probes import zeroshot
from pipeline.probes.contract import Subject
from pipeline.shards import write_shards
from tests.audit.damage import chunk, flip
from tests.inputs import build, labelled_samples

MILD, TEST = "train-000000.mild.v0-1", "test-000000.eval.v0-0"


def test_a_sealed_cache_is_described(sealed_cache: Path) -> None:
    info = cache_info(sealed_cache)
    assert (info.generation, info.sealed, info.problems) == (0, True, [])
    assert info.made_from["teacher"]["dim"] == 16
    assert info.made_from["batch"] == {"size": 16, "threads": 1, "device": "cpu"}
    assert {"schedules", "decode", "libraries"} <= set(info.made_from)
    train, test = info.splits["train"], info.splits["test"]
    assert (train.shards, train.samples, train.skipped, test.samples) == (2, 24, 0, 12)
    assert train.schedules == {
        "eval": {"views": 1, "published": 2, "planned": 2},
        "mild": {"views": 2, "published": 2, "planned": 2},
    }
    assert info.views == 24 * 3 + 12
    assert info.anchors["shapes-plain"].templates == [
        "A photo of a {label}.",
        "A drawing of a {label}.",
    ]


def test_bytes_are_those_of_the_files(sealed_cache: Path) -> None:
    info = cache_info(sealed_cache)
    files = [f for f in (sealed_cache / "units").glob("*/**/*") if f.is_file()]
    inside = [f for f in files if len(f.relative_to(sealed_cache / "units").parts) > 1]
    assert info.bytes["all"] == sum(f.stat().st_size for f in inside)
    targets = [f for f in inside if "targets" in f.parts]
    assert info.bytes["targets"] == sum(f.stat().st_size for f in targets) > 0


def test_the_teachers_zero_shot_is_the_probes_own_score(sealed_cache: Path) -> None:
    features = teacher_features(TargetCache.open(sealed_cache, "test", "eval"))
    for name in ("shapes-plain", "shapes-context"):
        anchors = read_anchors(sealed_cache, name)
        subject = Subject(test=features, anchors=anchors)
        wanted = zeroshot.run(subject, zeroshot.ZeroshotOptions()).scores["top1"]
        assert cache_info(sealed_cache).zeroshot["test"][name] == wanted
        cosine = features.embedding_ND @ anchors.embeddings_AD.T
        assert wanted == np.mean(cosine.argmax(axis=1) == features.labels_N)


def test_an_unfinished_cache_says_how_much_is_there(cache_copy: Path) -> None:
    writer.unseal(cache_copy, 0)
    shutil.rmtree(cache_copy / "units" / MILD)
    (cache_copy / "units" / TEST / "zarr.json").write_text("{")
    info = cache_info(cache_copy)
    assert not info.sealed
    assert info.splits["train"].schedules["mild"] == {"views": 2, "published": 1, "planned": 2}
    assert info.splits["test"].schedules["eval"]["published"] == 0
    assert info.zeroshot == {}
    assert "mild: 2 views, 1 of 2 units" in info.text()


def test_skips_are_counted_once_by_reason(tmp_path: Path, recipe_file: Path) -> None:
    pairs = labelled_samples(40)
    pairs[7] = ("00007", {"png": b"<html>", "cls": b"1"})
    pairs[8] = ("00008", {"txt": b"no image at all"})
    pairs[30] = ("00030", {"png": b"<html>", "cls": b"1"})
    write_shards(pairs, tmp_path / "shards", "train", per_shard=20)
    info = cache_info(build(tmp_path / "cache", tmp_path / "shards", recipe_file))
    train = info.splits["train"]
    assert (train.samples, train.skipped) == (40, 3)
    assert train.reasons == {"undecodable": 2, "no-image": 1}
    assert "train: 2 shards, 40 samples, 3 skipped, undecodable 2, no-image 1" in info.text()
    assert set(info.zeroshot) == {"train"}  # there is no other split


def test_unlabelled_images_have_no_zero_shot(tmp_path: Path, recipe_file: Path) -> None:
    pairs = [(k, {n: c for n, c in m.items() if n != "cls"}) for k, m in labelled_samples(6)]
    write_shards(pairs, tmp_path / "shards", "test", per_shard=6)
    info = cache_info(build(tmp_path / "cache", tmp_path / "shards", recipe_file))
    assert info.zeroshot == {}


def test_damage_is_told_and_stops_nothing(cache_copy: Path) -> None:
    flip(chunk(cache_copy, TEST, "targets", 0))
    (cache_copy / "anchors" / "shapes-plain" / "zarr.json").write_text("{")
    info = cache_info(cache_copy)
    assert [(p.place, p.array) for p in info.problems] == [(f"units/{TEST}", None)]
    assert "cannot open 'embeddings'" in str(info.anchors["shapes-plain"].error)
    assert "left out of zero-shot" in info.text()


def test_no_cache_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no cache in"):
        cache_info(tmp_path)
