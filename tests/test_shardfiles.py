"""Shards of an object store are brought near, a few at a time, and train as files do."""

import multiprocessing
from pathlib import Path

import pytest
import torch

from pipeline import shardfiles, stage_two
from pipeline.batches import TrainingBatches
from pipeline.cache.reader import TargetCache
from pipeline.errors import RunError, ShardError
from pipeline.recipe import Recipe
from pipeline.rundir import RunDir
from pipeline.shardfiles import ShardFiles, bring
from pipeline.shards import Shard, find_shards
from tests.buckets import Bucket
from tests.runs import probe, small_recipe


@pytest.fixture
def remote(bucket: Bucket, shards_dir: Path) -> list[Shard]:
    """The shards in a bucket."""
    bucket.put_folder(shards_dir, "shapes")
    return find_shards([f"s3://{bucket.name}/shapes"], allow=["s3"])


def copies(scratch: Path) -> list[Path]:
    return sorted((scratch / "scratch" / "shards").glob("*.tar"))


def test_a_copy_is_the_object_and_is_made_once(
    remote: list[Shard], shards_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ShardFiles(remote[:2])
    assert files.any_remote
    with open(files.descriptor(0), "rb", closefd=False) as file:
        assert file.read() == (shards_dir / "train-000000.tar").read_bytes()
    assert len(copies(tmp_path)) == 1
    monkeypatch.setattr(shardfiles, "_download", None)  # another would fail
    assert bring(remote[0]) == copies(tmp_path)[0]


def test_those_brought_first_make_room_and_stay_readable_while_open(
    remote: list[Shard], shards_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(shardfiles.BYTES_VARIABLE, "1")
    files = ShardFiles(remote[:2])
    first = files.descriptor(0)
    files.descriptor(1)
    assert copies(tmp_path) == [bring(remote[1])]
    with open(first, "rb", closefd=False) as file:
        assert file.read() == (shards_dir / "train-000000.tar").read_bytes()


def test_an_object_that_changes_on_the_way_is_an_error_and_leaves_no_copy(
    remote: list[Shard], bucket: Bucket, shards_dir: Path, tmp_path: Path
) -> None:
    changed = bytearray((shards_dir / "train-000000.tar").read_bytes())
    changed[700] ^= 1
    bucket.put("shapes/train-000000.tar", bytes(changed))
    with pytest.raises(ShardError, match=r"train-000000\.tar changed while it was brought near"):
        bring(remote[0])
    assert copies(tmp_path) == []


def test_an_object_that_goes_away_is_named(
    remote: list[Shard], bucket: Bucket, sealed_cache: Path
) -> None:
    source = batches(sealed_cache, remote, workers=0)
    bucket.delete("shapes/train-000001.tar")
    with pytest.raises(OSError, match="No such object") as caught:
        list(source.starting_at(0, 3))
    assert "train-000001.tar" in str(caught.value.filename)


def _bring(shard: Shard, results: "multiprocessing.Queue[str]") -> None:
    results.put(str(bring(shard)))


def test_processes_that_want_the_same_wait_for_one_of_them(
    remote: list[Shard], tmp_path: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[str] = context.Queue()
    processes = [context.Process(target=_bring, args=(remote[0], results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert found == {str(path) for path in copies(tmp_path)}


def batches(cache: Path, shards: list[Shard], **settings: int) -> TrainingBatches:
    return TrainingBatches(
        TargetCache.open(cache),
        shards,
        **{"sizes": (32,), "batch_size": 8, "num_views": 2, "seed": 0, "window": 1, **settings},
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_files_in_the_same_windows(
    remote: list[Shard], sealed_cache: Path, shards_dir: Path, workers: int
) -> None:
    near = batches(sealed_cache, find_shards([str(shards_dir)]), workers=0)
    far = batches(sealed_cache, remote, workers=workers)
    for one, other in zip(near.starting_at(0, 9), far.starting_at(0, 9), strict=True):
        assert torch.equal(one.rows_B, other.rows_B)
        assert torch.equal(one.geometry[32], other.geometry[32])
        assert torch.equal(one.keys_GD, other.keys_GD)


def test_a_run_from_a_bucket_reads_in_windows_by_default_and_is_probed_from_there(
    remote: list[Shard],
    sealed_cache: Path,
    shards_dir: Path,
    recipe_file: Path,
    tmp_path: Path,
) -> None:
    recipe = small_recipe(recipe_file)

    def train(recipe: Recipe, shards: list[Shard], name: str) -> RunDir:
        stage_two.train(recipe, [sealed_cache], shards, tmp_path / name, resume=True, device="cpu")
        return RunDir(tmp_path / name)

    far = train(recipe, remote, "far")
    assert far.read_origin()["cache"]["window_shards"] == 16
    near = train(
        small_recipe(recipe_file, "training.window_shards=16"),
        find_shards([str(shards_dir)]),
        "near",
    )
    weights, others = far.load_weights("student"), near.load_weights("student")
    assert all(torch.equal(value, others[name]) for name, value in weights.items())
    assert probe(far.path) == probe(near.path)
    with pytest.raises(RunError, match="window_shards: run has 16, asked for 0"):
        train(recipe, find_shards([str(shards_dir)]), "far")
