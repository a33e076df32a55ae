"""FAULTS, Distribution: workers that die, raise or are not fit; a scheduler that is lost."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cache import layout
from pipeline.cache.reader import read_manifest
from pipeline.cluster import Place
from pipeline.conveyor import embed_unit
from pipeline.decode import DecodePolicy
from pipeline.engine import run_jobs
from pipeline.errors import TeacherError
from pipeline.shards import find_shards
from pipeline.teacher import TeacherOptions
from pipeline.unit import UnitJob, UnitReport
from tests import clusters
from tests.faults.conftest import NUM_UNITS
from tests.faults.law import check_law
from tests.faults.stage_one import Run, published, started
from tests.faults.units import embed_at_the_third_attempt
from tests.inputs import build, make_teacher
from tests.trees import cache_digests

pytestmark = pytest.mark.slow
README = (clusters.ROOT / "README.md").read_text(encoding="utf-8")
POISON = "train-000001.mild.v0-1"


def jobs_of(cache: Path, shards: Path, model: str) -> list[UnitJob]:
    """Return the jobs of every planned unit, by hand."""
    manifest = read_manifest(cache)
    found = {(shard.split, shard.name): shard for shard in find_shards([str(shards)])}
    return [
        UnitJob(
            cache=cache,
            unit=unit,
            shard=found[unit.split, unit.shard],
            teacher=TeacherOptions(model=model, batch_size=16),
            device="cpu",
            teacher_digest=layout.teacher_digest(manifest["teacher"]),
            fingerprint=layout.fingerprint(manifest),
            schedule=manifest["schedules"][unit.schedule],
            decode=DecodePolicy(),
        )
        for unit in layout.planned_units(manifest)
    ]


def emptied(sealed: Path, cache: Path) -> Path:
    """Copy a cache without its units and its seal."""
    shutil.copytree(sealed, cache)
    for name in published(cache):
        shutil.rmtree(cache / "units" / name)
    shutil.rmtree(cache / "index")
    return cache


@contextmanager
def cluster_of(count: int, *options: object, folder: Path | None = None) -> Iterator[str]:
    """Run a scheduler and workers."""
    with ExitStack() as stack:
        address = stack.enter_context(clusters.scheduler())
        for _ in range(count):
            stack.enter_context(clusters.worker(address, *options, folder=folder))
        yield address


def test_a_unit_that_kills_every_worker_is_named_and_the_rest_finishes(
    tmp_path: Path, shards_dir: Path, recipe_file: Path, sealed_cache: Path
) -> None:
    cache = tmp_path / "cache"
    fault = {"BEAMCLIP_FAULT_POINT": f"in-{POISON}"}
    run = Run(cache, shards_dir, recipe_file, ("--workers", 2), fault)
    outcome = run.finish()
    assert outcome.returncode == 3, outcome.stderr
    assert "1 of 5 units failed" in outcome.stderr
    assert f"{POISON}: 3 worker processes died with it in hand" in outcome.stderr
    assert outcome.stderr.count("a worker process died") == 3
    assert "Traceback" not in outcome.stderr
    assert "distributed" not in outcome.stderr
    assert check_law(cache, exit_code=3).missing == {POISON}
    rerun = replace(run, options=(), variables={}).finish()
    assert rerun.returncode == 0, rerun.stderr
    check_law(cache, exit_code=0)
    assert cache_digests(cache) == cache_digests(sealed_cache)


@pytest.mark.parametrize("workers", [1, 2])
def test_local_workers_give_the_same_bytes_as_this_process(
    tmp_path: Path, shards_dir: Path, recipe_file: Path, sealed_cache: Path, workers: int
) -> None:
    done = Run(tmp_path / "cache", shards_dir, recipe_file, ("--workers", workers)).finish()
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    check_law(tmp_path / "cache", exit_code=0)
    assert cache_digests(tmp_path / "cache") == cache_digests(sealed_cache)


def test_a_worker_that_is_killed_on_the_way_costs_nothing(
    tmp_path: Path, many_shards: Path, recipe_file: Path, many_units: Path
) -> None:
    run = Run(tmp_path / "cache", many_shards, recipe_file, ("--workers", 2))
    with started(run) as stage_one:
        stage_one.wait_for_units(3)
        victims = [pid for pid in stage_one.workers() if "spawn_main" in command_line(pid)]
        os.kill(victims[0], signal.SIGKILL)
        code, said = stage_one.end(200)
    assert code == 0, said
    assert "a worker process died" in said
    check_law(run.cache, exit_code=0)
    assert cache_digests(run.cache) == cache_digests(many_units)


def command_line(pid: int) -> str:
    """Return a process's command line."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_a_unit_that_raises_twice_then_works_is_recovered(
    tmp_path: Path, shards_dir: Path, teacher_dir: Path, sealed_cache: Path, recipe_file: Path
) -> None:
    cache = emptied(sealed_cache, tmp_path / "cache")
    jobs = jobs_of(cache, shards_dir, f"local-dir:{teacher_dir}")
    with cluster_of(2, folder=tmp_path) as address:
        outcomes = run_jobs(
            embed_at_the_third_attempt,
            jobs,
            place=Place(scheduler=address),
            threads=1,
            libraries={},
            listen=lambda _: None,
        )
        assert {type(outcome) for _, outcome in outcomes} == {UnitReport}
    build(cache, shards_dir, recipe_file)
    check_law(cache, exit_code=0)
    assert cache_digests(cache) == cache_digests(sealed_cache)


def test_a_worker_without_the_right_teacher_never_embeds(
    tmp_path: Path, shards_dir: Path, teacher_dir: Path, sealed_cache: Path, recipe_file: Path
) -> None:
    """By the same relative path, one worker finds the teacher and the other one other weights."""
    cache = emptied(sealed_cache, tmp_path / "cache")
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    for folder in (right, wrong):
        folder.mkdir()
    shutil.copytree(teacher_dir, right / "teacher")
    make_teacher(wrong / "teacher", seed=1)
    jobs = jobs_of(cache, shards_dir, "local-dir:teacher")

    def embed(address: str) -> list[object]:
        place = Place(scheduler=address)
        given = run_jobs(
            embed_unit, jobs, place=place, threads=1, libraries={}, listen=lambda _: None
        )
        return [outcome for _, outcome in given]

    with clusters.scheduler() as address, clusters.worker(address, folder=wrong):
        with pytest.raises(TeacherError, match="not the one of the cache's manifest"):
            embed(address)
        assert published(cache) == set()
        with clusters.worker(address, folder=right):
            clusters.wait_for_workers(address, 2)
            assert {type(outcome) for outcome in embed(address)} == {UnitReport}
    build(cache, shards_dir, recipe_file)
    check_law(cache, exit_code=0)
    assert cache_digests(cache) == cache_digests(sealed_cache)


def test_a_lost_scheduler_stops_the_driver_and_a_rerun_goes_on(
    tmp_path: Path, many_shards: Path, recipe_file: Path, many_units: Path
) -> None:
    port = clusters.free_port()
    command = [clusters.DASK, "scheduler", "--host", "127.0.0.1", "--port", port]
    address = f"127.0.0.1:{port}"
    run = Run(tmp_path / "cache", many_shards, recipe_file, ("--scheduler", address))
    with (
        clusters.started([*command, "--dashboard-address", "127.0.0.1:0"]) as lost,
        clusters.worker(address),
    ):
        clusters.wait_until_listening(port)
        with started(run) as stage_one:
            stage_one.wait_for_units(3)
            lost.kill()
            code, said = stage_one.end(60)
    assert code == 1, said
    assert f"lost the scheduler tcp://{address}" in said
    assert "the same command: it goes on from there" in said
    assert "Traceback" not in said
    assert check_law(run.cache, exit_code=code).missing
    before = len(published(run.cache))
    rerun = replace(run, options=()).finish()
    assert rerun.returncode == 0, rerun.stderr
    assert json.loads(rerun.stdout)["made"] == NUM_UNITS - before
    check_law(run.cache, exit_code=0)
    assert cache_digests(run.cache) == cache_digests(many_units)


def test_fewer_units_than_workers_are_made_by_as_many_as_there_is_work_for(
    cache_copy: Path, shards_dir: Path, recipe_file: Path, sealed_cache: Path
) -> None:
    shutil.rmtree(cache_copy / "units" / POISON)
    done = Run(cache_copy, shards_dir, recipe_file, ("--workers", 8)).finish()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["made"] == 1
    check_law(cache_copy, exit_code=0)
    assert cache_digests(cache_copy) == cache_digests(sealed_cache)


def readme_lines() -> tuple[list[str], list[list[str]], list[str]]:
    """Return the README's commands: the scheduler, the workers, stage one."""
    section = README.split("## More than one process")[1].split("\n## ")[0]
    (block,) = re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)
    lines = [shlex.split(line.removeprefix(".venv/bin/")) for line in block.splitlines()]
    scheduler, *workers, stage_one = lines
    assert scheduler[:2] == ["dask", "scheduler"]
    assert [worker[:2] for worker in workers] == [["dask", "worker"]] * 2
    assert stage_one[:2] == ["beamclip", "teacher-cache"]
    return scheduler, workers, stage_one


@pytest.mark.parametrize("threads", [1, 2])
def test_the_readmes_cluster_gives_the_same_bytes_as_this_process(
    tmp_path: Path, shards_dir: Path, recipe_file: Path, threads: int
) -> None:
    port = clusters.free_port()
    override = f"teacher.threads={threads}"
    values = {
        "8786": str(port),
        "127.0.0.1:8786": f"127.0.0.1:{port}",
        "data/shards/digits": str(shards_dir),
        "data/cache/digits": str(tmp_path / "cache"),
        "digits": str(recipe_file),
    }

    def local(words: list[str]) -> list[str]:
        return [values.get(word, word) for word in words]

    scheduler, workers, stage_one = readme_lines()
    with ExitStack() as stack:
        for command in (scheduler, *workers):
            place = [str(clusters.DASK), *local(command)[1:]]
            stack.enter_context(clusters.started(place, folder=tmp_path))
            clusters.wait_until_listening(port)
        options = [*local(stage_one)[2:], "--device", "cpu", "--set", override]
        run = Run(tmp_path / "cache", shards_dir, recipe_file)
        done = subprocess.run(
            [*run.command[:2], *options],
            env=run.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
    assert done.returncode == 0, done.stderr
    check_law(tmp_path / "cache", exit_code=0)
    alone = build(tmp_path / "alone", shards_dir, recipe_file, override)
    assert cache_digests(tmp_path / "cache") == cache_digests(alone)


def test_a_remote_scheduler_without_encryption_is_refused_before_anything_is_written(
    tmp_path: Path, shards_dir: Path, recipe_file: Path
) -> None:
    run = Run(tmp_path / "cache", shards_dir, recipe_file, ("--scheduler", "192.0.2.1:8786"))
    refused = run.finish()
    assert refused.returncode == 1
    assert "Whoever reaches a scheduler runs code" in refused.stderr
    assert "--insecure" in refused.stderr
    assert not run.cache.exists()


def test_a_cluster_behind_tls_is_used_with_dasks_own_settings(
    tmp_path: Path, shards_dir: Path, recipe_file: Path, sealed_cache: Path
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    certificate = tmp_path / "certificate.pem"
    make_certificate(certificate)
    prefix = "DASK_DISTRIBUTED__COMM"
    settings = {f"{prefix}__TLS__CA_FILE": str(certificate)}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        settings[f"{prefix}__TLS__{role}__CERT"] = str(certificate)
        settings[f"{prefix}__TLS__{role}__KEY"] = str(certificate)
    with (
        clusters.scheduler("--protocol", "tls", **settings) as address,
        clusters.worker(f"tls://{address}", "--protocol", "tls", **settings),
    ):
        options = ("--scheduler", f"tls://{address}")
        run = Run(tmp_path / "cache", shards_dir, recipe_file, options, settings)
        done = run.finish()
    assert done.returncode == 0, done.stderr
    check_law(run.cache, exit_code=0)
    assert cache_digests(run.cache) == cache_digests(sealed_cache)


def make_certificate(path: Path) -> None:
    """Write a key and a certificate that it signed itself, as one file."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=beamclip-test", "-keyout", f"{path}.key", "-out", f"{path}.crt"]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(Path(f"{path}.key").read_bytes() + Path(f"{path}.crt").read_bytes())
