"""`kill -9` at named points of stage one: nothing half-written, nothing done twice."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cache.reader import TargetCache
from pipeline.errors import CacheError
from tests.trees import cache_digests, tree_digests

BEAMCLIP = Path(sys.executable).with_name("beamclip")
NUM_UNITS = 5


def run_stage_one(
    cache: Path,
    shards: Path,
    recipe: Path,
    *options: str,
    fault: str | None = None,
    workers: int = 0,
) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, **({"BEAMCLIP_FAULT_POINT": fault} if fault else {})}
    command = [BEAMCLIP, "teacher-cache", "--cache", cache, "--shards", shards]
    command += ["--recipe", recipe, "--device", "cpu", "--json", "--workers", str(workers)]
    command += options
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env=environment,
    )


def published(cache: Path) -> set[str]:
    folder = cache / "units"
    return {path.name for path in folder.iterdir() if path.is_dir()} if folder.exists() else set()


def check_killed_and_rerun(
    cache: Path, shards: Path, recipe: Path, clean: Path, fault: str
) -> None:
    killed = run_stage_one(cache, shards, recipe, fault=fault)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    kept = published(cache)
    before = tree_digests(cache / "units", *kept)
    with pytest.raises(CacheError):
        TargetCache.open(cache)
    rerun = run_stage_one(cache, shards, recipe)
    assert rerun.returncode == 0, rerun.stderr
    assert json.loads(rerun.stdout)["made"] == NUM_UNITS - len(kept)
    assert tree_digests(cache / "units", *kept) == before
    assert cache_digests(cache) == cache_digests(clean)
    assert not (cache / ".tmp").exists() or not any((cache / ".tmp").iterdir())


def test_a_rerun_after_kill_9_gives_the_same_cache_and_redoes_only_the_rest(
    tmp_path: Path, shards_dir: Path, recipe_file: Path, sealed_cache: Path
) -> None:
    """Killed when two prompt sets and two units are published and a third is about to be."""
    cache = tmp_path / "cache"
    check_killed_and_rerun(cache, shards_dir, recipe_file, sealed_cache, "before-rename:5")


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        "before-parent:1",  # before anchors/ is a group
        "before-parent:2",  # before units/ is one
        "before-attributes:1",  # in the first prompt set
        "before-attributes:4",
        "before-rename:3",
        "after-rename:3",
        "after-rename:7",  # all units are there, the seal is not
        "before-rename:8",  # the seal is written, not published
    ],
)
def test_every_point_of_publishing_survives_kill_9(
    tmp_path: Path, shards_dir: Path, recipe_file: Path, sealed_cache: Path, fault: str
) -> None:
    check_killed_and_rerun(tmp_path / "cache", shards_dir, recipe_file, sealed_cache, fault)


@pytest.mark.slow
def test_workers_and_a_driver_that_die_lose_nothing(
    tmp_path: Path, shards_dir: Path, recipe_file: Path, sealed_cache: Path
) -> None:
    """A worker dies at its third publication and a new one takes over; the driver at the seal."""
    cache = tmp_path / "cache"
    killed = run_stage_one(cache, shards_dir, recipe_file, workers=2, fault="before-rename:3")
    assert killed.returncode == -signal.SIGKILL
    assert len(published(cache)) == NUM_UNITS
    rerun = run_stage_one(cache, shards_dir, recipe_file)
    assert rerun.returncode == 0, rerun.stderr
    assert json.loads(rerun.stdout)["made"] == 0
    assert cache_digests(cache) == cache_digests(sealed_cache)
