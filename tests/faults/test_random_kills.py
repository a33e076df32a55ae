"""FAULTS, Crash and storage: `kill -9` at random moments, of drivers, workers and renderers.

Each kill is counted only if it ended a process that was running; together they are fifty and more.
"""

import os
import random
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.shards import write_shards
from tests.clusters import marked, wait_until
from tests.faults import commands, stage_one
from tests.faults.law import Law, check_law
from tests.faults.stage_one import Run, published
from tests.inputs import build, labelled_samples
from tests.trees import cache_digests, tree_stamps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

OF_DRIVERS, OF_RENDERERS, OF_COMMANDS, OF_WORKERS = 40, 4, 2, 5
assert OF_DRIVERS + OF_RENDERERS + OF_COMMANDS + OF_WORKERS > 50
ONE_VIEW = "views=1"
SECONDS = 60  # for what a dead process has started to end, too


@pytest.fixture(scope="module")
def six_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards: twelve units, made in little more than a second."""
    folder = tmp_path_factory.mktemp("six-shards")
    write_shards(labelled_samples(12, seed=5), folder, "train", per_shard=2)
    return folder


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, six_shards: Path, recipe_file: Path) -> Path:
    """The cache of the six shards, made without a fault."""
    return build(tmp_path_factory.mktemp("clean") / "cache", six_shards, recipe_file, ONE_VIEW)


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty shards: workers are busy for seconds."""
    folder = tmp_path_factory.mktemp("thirty-shards")
    write_shards(labelled_samples(30, seed=6), folder, "train", per_shard=1)
    return folder


class Victim:
    """A cache whose stage one is killed again and again, and what it must hold from then on."""

    def __init__(self, cache: Path, clean: Path) -> None:
        self.cache, self.clean = cache, clean
        self.mark = uuid.uuid4().hex
        self._kept: dict[str, tuple[str, int]] = {}
        self._begun: set[str] = set()
        self._units: set[str] = set()

    def phase(self, law: Law) -> str:
        """Say what stage one was doing since the last time this was asked."""
        begun = {path.name for path in (self.cache / ".tmp").glob("*")}
        units, before = law.published, self._units
        writing, self._begun, self._units = begun - self._begun, begun, units
        if writing:
            return "writing"
        if law.sealed:
            return "sealed"
        return "starting" if units == before else "between units"

    def check(self, exit_code: int | None) -> Law:
        """Assert that no process is left, that what was published stands, and the law."""
        wait_until(lambda: not marked(self.mark), SECONDS)
        stamps = tree_stamps(self.cache) if self.cache.exists() else {}
        found = {name: stamp for name, stamp in stamps.items() if is_published(name)}
        assert self._kept.items() <= found.items(), "published before, and not as it was"
        self._kept = found
        return check_law(self.cache, exit_code=exit_code)

    def check_finished(self) -> None:
        """Assert that nothing tells the cache from one that was made without a fault."""
        assert self.check(0).whole
        assert cache_digests(self.cache) == cache_digests(self.clean)
        assert tree_stamps(self.cache).keys() == tree_stamps(self.clean).keys()


def is_published(name: str) -> bool:
    """Tell whether a file of a cache is no temporary one."""
    return not name.startswith(".") and "/." not in name and not name.endswith(".partial")


def moments(kills: int, seed: int) -> list[float]:
    """Return one random moment of each of so many equal parts of [0, 1), shuffled."""
    generator = random.Random(seed)
    found = [(part + generator.random()) / kills for part in range(kills)]
    generator.shuffle(found)
    return found


def test_kills_of_the_driver_at_any_moment_lose_nothing(
    tmp_path: Path, six_shards: Path, recipe_file: Path, clean: Path
) -> None:
    command = ["teacher-cache", "--shards", six_shards, "--recipe", recipe_file]
    command += ["--device", "cpu", "--set", ONE_VIEW]
    commands.beamclip("--version")  # the server has started
    began = time.monotonic()
    assert commands.beamclip(*command, "--cache", tmp_path / "timed").returncode == 0
    seconds = time.monotonic() - began
    todo, phases, attempts = moments(OF_DRIVERS, seed=1), Counter[str](), 0
    victim, fresh = Victim(tmp_path / "cache-0", clean), True
    while todo:
        attempts += 1
        assert attempts < 5 * OF_DRIVERS, f"only {phases.total()} kills met a running process"
        environment = {"BEAMCLIP_TEST_MARK": victim.mark}
        arguments = [*command, "--cache", victim.cache]
        began = time.monotonic()
        with commands.started(*arguments, environment=environment) as run:
            if run.runs_for(todo[-1] * seconds):
                run.process.kill()
            done = run.end()
        if done.returncode == -signal.SIGKILL:
            phases[victim.phase(victim.check(None))] += 1
            todo.pop()
            fresh = False
            continue
        assert done.returncode == 0, done.stderr
        victim.check_finished()
        if fresh:  # the machine is faster than it was
            seconds = min(seconds, time.monotonic() - began)
        victim, fresh = Victim(tmp_path / f"cache-{attempts}", clean), True
    if not fresh:
        finish = commands.beamclip(*command, "--cache", victim.cache)
        assert finish.returncode == 0, finish.stderr
        victim.check_finished()
    print(f"{attempts} runs, {phases.total()} kills: {dict(phases)}")
    assert phases.total() == OF_DRIVERS
    assert phases["starting"]
    assert phases["writing"]


@pytest.mark.parametrize("moment", moments(OF_RENDERERS, seed=2))
def test_a_killed_renderer_costs_no_sample(
    tmp_path: Path, six_shards: Path, recipe_file: Path, clean: Path, moment: float
) -> None:
    victim = Victim(tmp_path / "cache", clean)
    with commands.started(
        *("teacher-cache", "--shards", six_shards, "--recipe", recipe_file, "--device", "cpu"),
        *("--set", ONE_VIEW, "--renderers", 1, "--cache", victim.cache),
        environment={"BEAMCLIP_TEST_MARK": victim.mark},
    ) as run:
        wait_until(lambda: len(published(victim.cache)) >= int(moment * 8), SECONDS)
        (renderer,) = marked(victim.mark)
        os.kill(renderer, signal.SIGKILL)
        done = run.end()
    assert done.returncode == 0, done.stderr
    victim.check_finished()


@pytest.mark.parametrize("moment", moments(OF_COMMANDS, seed=3))
def test_a_killed_command_line_is_run_again(
    tmp_path: Path, six_shards: Path, recipe_file: Path, clean: Path, moment: float
) -> None:
    options = ("--set", ONE_VIEW, "--renderers", 1)
    run = Run(tmp_path / "cache", six_shards, recipe_file, options)
    victim = Victim(run.cache, clean)
    with stage_one.started(run) as command:
        victim.mark = command.mark
        command.wait_for_units(int(moment * 8))
        command.process.kill()
        code, _ = command.end()
        assert code == -signal.SIGKILL
        victim.check(None)
    assert run.finish().returncode == 0
    victim.check_finished()


def test_kills_of_workers_drivers_and_whole_groups_lose_nothing(
    tmp_path: Path, many_shards: Path, recipe_file: Path
) -> None:
    """A worker, and then its driver; a worker, and then all at once; a worker alone."""
    clean = build(tmp_path / "clean", many_shards, recipe_file, ONE_VIEW)
    run = Run(tmp_path / "cache", many_shards, recipe_file, ("--set", ONE_VIEW, "--workers", 2))
    victim, generator, kills = Victim(run.cache, clean), random.Random(4), 0
    endings: list[Callable[[stage_one.Started], None]] = [
        lambda command: command.process.kill(),
        lambda command: command.signal_group(signal.SIGKILL),
    ]
    for ending in endings:
        with stage_one.started(run) as command:
            victim.mark = command.mark
            kill_a_worker(command, generator)
            command.wait_for_units(command.published() + generator.randrange(1, 8))
            ending(command)
            code, _ = command.end()
            assert code == -signal.SIGKILL
            kills += 2
            assert victim.check(None).missing
    with stage_one.started(run) as command:
        victim.mark = command.mark
        kill_a_worker(command, generator)
        code, said = command.end(200)
        kills += 1
    assert code == 0, said
    victim.check_finished()
    assert kills == OF_WORKERS
    again = replace(run, options=("--set", ONE_VIEW)).finish()
    assert again.returncode == 0, again.stderr
    victim.check_finished()


def kill_a_worker(command: stage_one.Started, generator: random.Random) -> None:
    """Kill one of the workers once some more units are published."""
    command.wait_for_units(command.published() + generator.randrange(1, 8))
    workers = [pid for pid in command.workers() if is_worker(pid)]
    os.kill(generator.choice(sorted(workers)), signal.SIGKILL)


def is_worker(pid: int) -> bool:
    """Tell a worker that has started from what else a driver starts."""
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
