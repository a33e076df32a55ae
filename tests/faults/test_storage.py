"""FAULTS, Crash and storage: signals, disks that take nothing more, two drivers on one cache."""

import json
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.clusters import wait_until
from tests.faults.conftest import NUM_UNITS
from tests.faults.law import check_law
from tests.faults.stage_one import Run, published, started
from tests.trees import cache_digests, tree_digests

pytestmark = pytest.mark.slow


def check_rerun(run: Run, clean: Path) -> None:
    """Run what was stopped again, in one process: the rest is made, what was there stays."""
    kept = published(run.cache)
    before = tree_digests(run.cache / "units", *kept)
    rerun = replace(run, options=()).finish()
    assert rerun.returncode == 0, rerun.stderr
    assert json.loads(rerun.stdout)["made"] == NUM_UNITS - len(kept)
    assert tree_digests(run.cache / "units", *kept) == before
    check_law(run.cache, exit_code=0)
    assert cache_digests(run.cache) == cache_digests(clean)
    assert not (run.cache / ".tmp").exists() or not any((run.cache / ".tmp").iterdir())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Terminated")],
)
def test_a_signal_stops_stage_one_cleanly_and_a_rerun_goes_on(
    tmp_path: Path,
    many_shards: Path,
    recipe_file: Path,
    many_units: Path,
    workers: int,
    number: signal.Signals,
    code: int,
    word: str,
) -> None:
    """Ctrl-C reaches the workers too; SIGTERM the driver alone."""
    run = Run(tmp_path / "cache", many_shards, recipe_file, ("--workers", workers))
    with started(run) as stage_one:
        stage_one.wait_for_units(3)
        if number == signal.SIGINT:
            stage_one.signal_group(number)
        else:
            stage_one.process.send_signal(number)
        found, said = stage_one.end(60)
        assert (found, said) == (
            code,
            f"{word}; what was finished is kept, run again to go on.\n",
        )
        assert stage_one.workers() == set()
    law = check_law(run.cache, exit_code=code)
    assert law.missing
    assert not law.sealed
    check_rerun(run, many_units)


def test_workers_end_by_themselves_when_their_driver_is_killed(
    tmp_path: Path, many_shards: Path, recipe_file: Path, many_units: Path
) -> None:
    run = Run(tmp_path / "cache", many_shards, recipe_file, ("--workers", 2))
    with started(run) as stage_one:
        stage_one.wait_for_units(3)
        assert len(stage_one.workers()) >= 2
        stage_one.process.kill()
        assert stage_one.end()[0] == -signal.SIGKILL
        wait_until(lambda: not stage_one.workers(), 30)
    assert (run.cache / ".lock").exists()  # stale: the rerun takes it over
    check_law(run.cache, exit_code=137)
    check_rerun(run, many_units)


def test_a_second_driver_is_refused_at_once_and_the_first_goes_on(
    tmp_path: Path, many_shards: Path, recipe_file: Path, many_units: Path
) -> None:
    run = Run(tmp_path / "cache", many_shards, recipe_file)
    with started(run) as stage_one:
        stage_one.wait_for_units(1)
        stage_one.process.send_signal(signal.SIGSTOP)  # or it might end before the other begins
        second = run.finish()
        stage_one.process.send_signal(signal.SIGCONT)
        assert second.returncode == 1, second.stdout
        assert "is being written by another process" in second.stderr
        code, said = stage_one.end(200)
        assert code == 0, said
    check_law(run.cache, exit_code=0)
    assert cache_digests(run.cache) == cache_digests(many_units)


def test_two_drivers_that_a_lock_did_not_keep_apart_leave_no_mixture(
    tmp_path: Path, many_shards: Path, recipe_file: Path, many_units: Path
) -> None:
    """As on a file system that keeps no locks: the lock file is taken from under the first."""
    run = Run(tmp_path / "cache", many_shards, recipe_file)
    with started(run) as first:
        first.wait_for_units(1)
        (run.cache / ".lock").unlink()
        with started(run) as second:
            ends = [first.end(200), second.end(200)]
    assert {code for code, _ in ends} <= {0, 3}, ends
    assert 0 in {code for code, _ in ends}, ends
    assert all("Traceback" not in said for _, said in ends)
    check_law(run.cache, exit_code=0)
    assert cache_digests(run.cache) == cache_digests(many_units)


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    """Mount at a folder for the block."""
    place.mkdir(exist_ok=True)
    mount(*options, str(place))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def copied_out(run: Run, place: Path) -> Run:
    """Copy a cache to where there is room, and return the run that goes on with it."""
    shutil.copytree(run.cache, place)
    return replace(run, cache=place)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_stops_the_run_and_names_path_and_need(
    tmp_path: Path, many_shards: Path, recipe_file: Path, many_units: Path, workers: int
) -> None:
    disk = tmp_path / "disk"
    sizes = (file.stat().st_size for file in many_units.rglob("*") if file.is_file())
    half = sum(-(-size // 4096) * 4096 for size in sizes) // 2
    with mounted(disk, "-t", "tmpfs", "-o", f"size={half}", "beamclip-test"):
        run = Run(disk / "cache", many_shards, recipe_file, ("--workers", workers))
        full = run.finish()
        check_stopped(full, run.cache, "No space left on device")
        assert "MB are free there" in full.stderr
        assert 0 < len(published(run.cache)) < NUM_UNITS
        moved = copied_out(run, tmp_path / "roomier")
    check_rerun(moved, many_units)


def check_stopped(done: "subprocess.CompletedProcess[str]", cache: Path, reason: str) -> None:
    """Hold that a storage fault was told as such, once, and left nothing half-written."""
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("Error: cannot write") == 1, done.stderr
    assert str(cache) in done.stderr
    assert reason in done.stderr
    assert "Needed for" in done.stderr
    assert "Traceback" not in done.stderr
    assert "units failed" not in done.stderr
    check_law(cache, exit_code=1)


def test_a_limit_on_the_size_of_files_stops_the_run_and_a_rerun_goes_on(
    tmp_path: Path, many_shards: Path, recipe_file: Path, many_units: Path
) -> None:
    run = Run(tmp_path / "cache", many_shards, recipe_file)
    with started(run) as stage_one:
        stage_one.wait_for_units(3)
        resource.prlimit(stage_one.process.pid, resource.RLIMIT_FSIZE, (512, 512))
        code, said = stage_one.end()
    limited = subprocess.CompletedProcess(run.command, code, "", said)
    check_stopped(limited, run.cache, "File too large")
    check_rerun(run, many_units)


def test_a_limit_below_what_views_take_in_memory_says_so(
    tmp_path: Path, many_shards: Path, recipe_file: Path
) -> None:
    run = Run(tmp_path / "cache", many_shards, recipe_file)
    limited = run.finish(("prlimit", f"--fsize={32 * 1024}"))
    assert limited.returncode == 1, limited.stderr
    assert "MB of memory for views, which `ulimit -f` limits too: File too large" in limited.stderr
    assert "Traceback" not in limited.stderr
    check_law(run.cache, exit_code=1)


def test_a_cache_that_turns_read_only_stops_the_run_and_a_rerun_goes_on(
    tmp_path: Path, many_shards: Path, recipe_file: Path, many_units: Path
) -> None:
    run = Run(tmp_path / "cache", many_shards, recipe_file)
    with started(run) as stage_one, ExitStack() as mounts:
        stage_one.wait_for_units(3)
        # Mounted over itself: the driver's lock, open for writing, lies beneath.
        mounts.enter_context(mounted(run.cache, "--bind", str(run.cache)))
        mount("-o", "remount,ro,bind", str(run.cache))
        code, said = stage_one.end()
        assert code == 1, said
        assert "cannot write" in said
        assert "Read-only file system" in said
        assert "Traceback" not in said
        assert check_law(run.cache, exit_code=code).missing
        again = run.finish()
        assert again.returncode == 1
        assert f"{run.cache}/.lock: Read-only file system" in again.stderr
    check_rerun(run, many_units)


def mount(*options: str) -> None:
    """Mount, or skip the test where that is not allowed."""
    done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"may not mount here: {done.stderr.strip()}")
