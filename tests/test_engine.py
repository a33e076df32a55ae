"""Jobs here, on local workers and on a running cluster: what comes back, and after which faults."""

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster import HERE, Place
from pipeline.engine import run_jobs
from pipeline.errors import (
    ClusterError,
    QuarantineError,
    ShardError,
    StorageError,
    TeacherError,
    WorkerError,
)
from tests import jobs
from tests.clusters import ROOT, scheduler, wait_for_workers, worker
from tests.jobs import Trial


def heard(_: tuple[int, int]) -> None:
    """Listen without remembering."""


def run(
    work: Any, todo: Sequence[Any], place: Place, *, listen: Any = heard, **libraries: str
) -> list[tuple[Any, Any]]:
    return list(run_jobs(work, todo, place=place, threads=1, libraries=libraries, listen=listen))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Place]:
    """A running cluster of two workers, which their nannies restart."""
    with scheduler() as address, worker(address), worker(address):
        wait_for_workers(address, 2)
        yield Place(scheduler=address)


def test_jobs_here_run_in_order_and_survive_each_other() -> None:
    sent: list[tuple[int, int]] = []
    outcomes = run(jobs.double, [2, 3, 4, 5, 6], HERE, listen=sent.append)
    assert [job for job, _ in outcomes] == [2, 3, 4, 5, 6]
    assert [outcome for _, outcome in outcomes if isinstance(outcome, int)] == [4, 8, 12]
    assert {type(outcome) for job, outcome in outcomes if job % 2} == {ShardError, OSError}
    assert sent == [(1, 2), (1, 4), (1, 6)]


def test_jobs_here_start_only_when_the_last_result_was_taken() -> None:
    started: list[int] = []

    def work(job: int, _: Any) -> int:
        started.append(job)
        return job

    results = run_jobs(work, [1, 2, 3], place=HERE, threads=1, libraries={}, listen=heard)
    assert next(results) == (1, 1)
    assert started == [1]
    results.close()
    assert started == [1]


def test_whatever_one_job_meets_leaves_the_others_alone() -> None:
    """As on dask: even a mistake in the code fails the units that meet it, no more."""

    def work(job: int, _: Any) -> int:
        return 6 // job

    outcomes = dict(run(work, [0, 2], HERE))
    assert isinstance(outcomes[0], ZeroDivisionError)
    assert outcomes[2] == 3


def test_a_disk_that_takes_nothing_stops_the_run_at_once() -> None:
    started: list[int] = []

    def work(job: int, _: Any) -> int:
        started.append(job)
        raise StorageError("full")

    with pytest.raises(StorageError, match="full"):
        run(work, [1, 2], HERE)
    assert started == [1]


@pytest.mark.parametrize("place", [HERE, Place(workers=2), Place(scheduler="127.0.0.1:1")])
def test_no_jobs_start_nothing(place: Place) -> None:
    assert run(jobs.double, [], place) == []


def test_a_job_that_raises_twice_then_works_is_recovered_here(tmp_path: Path) -> None:
    todo = [Trial(tmp_path, 0, errors=2), Trial(tmp_path, 1, errors=3)]
    outcomes = [outcome for _, outcome in run(jobs.try_hard, todo, HERE)]
    assert outcomes[0] == 0
    assert isinstance(outcomes[1], OSError)
    assert todo[1].attempt() == 4


def test_a_running_cluster_does_every_job_and_tells_of_it(cluster: Place) -> None:
    sent: list[tuple[int, int]] = []
    outcomes = dict(run(jobs.double, range(10), cluster, listen=sent.append))
    assert {job: out for job, out in outcomes.items() if isinstance(out, int)} == {
        job: 2 * job for job in range(10) if job not in (3, 5)
    }
    assert isinstance(outcomes[3], ShardError)
    assert isinstance(outcomes[5], OSError)
    assert str(outcomes[5]) == "bad 5"
    assert sorted(sent) == [(1, job) for job in range(10) if job not in (3, 5)]


def test_fewer_jobs_than_workers_are_done_as_well(cluster: Place) -> None:
    assert run(jobs.double, [8], cluster) == [(8, 16)]


def test_errors_deaths_and_killers_among_many_jobs_cost_no_other_job(
    cluster: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One recovers from two errors, one from a death, one kills whoever takes it up."""
    special = {
        3: Trial(tmp_path, 3, errors=2),
        5: Trial(tmp_path, 5, deaths=1),
        8: Trial(tmp_path, 8, deaths=99),
    }
    todo = [special.get(number, Trial(tmp_path, number)) for number in range(16)]
    outcomes = {job.number: outcome for job, outcome in run(jobs.try_hard, todo, cluster)}
    assert {n: out for n, out in outcomes.items() if n != 8} == {n: n for n in range(16) if n != 8}
    assert isinstance(outcomes[8], QuarantineError)
    assert "3 worker processes died with it in hand" in str(outcomes[8])
    assert (tmp_path / "8").stat().st_size in (2, 3)  # it may have been by when job 5 killed
    assert (tmp_path / "3").stat().st_size == 3
    assert caplog.text.count("a worker process died") in (3, 4)
    wait_for_workers(cluster.scheduler or "", 2)


def test_a_stopped_iterator_leaves_the_cluster_to_the_next(cluster: Place) -> None:
    outcomes = run_jobs(
        jobs.double, range(10), place=cluster, threads=1, libraries={}, listen=heard
    )
    with closing(outcomes):
        next(outcomes)
    assert run(jobs.double, [4], cluster) == [(4, 8)]


def test_workers_of_other_library_versions_do_nothing_and_both_versions_are_named(
    cluster: Place,
) -> None:
    with pytest.raises(WorkerError, match=r"numpy [\d.]+ where the driver has 0\.1"):
        run(jobs.double, [2], cluster, numpy="0.1")
    with pytest.raises(WorkerError, match=r"no-such-library \(none\) where the driver has 2"):
        run(jobs.double, [2], cluster, **{"no-such-library": "2"})


def test_a_worker_of_another_beamclip_does_nothing_and_both_versions_are_named(
    tmp_path: Path,
) -> None:
    for package in ("pipeline", "tests"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    init = tmp_path / "pipeline" / "__init__.py"
    init.write_text(init.read_text().replace("__version__ = ", "__version__ = '9.9+' + "))
    with (
        scheduler() as address,
        worker(address, folder=tmp_path, path=tmp_path),
        pytest.raises(WorkerError, match=r"beamclip 9\.9\+\S+ where the driver has \d"),
    ):
        run(jobs.double, [2], Place(scheduler=address))


def test_an_unfit_worker_is_set_aside_and_the_others_do_its_jobs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = [tmp_path / name for name in ("right", "wrong")]
    for folder in folders:
        folder.mkdir()
    with (
        scheduler() as address,
        worker(address, folder=folders[0]),
        worker(address, folder=folders[1]),
    ):
        wait_for_workers(address, 2)
        place = Place(scheduler=address)
        assert run(jobs.only_in, ["right"] * 8, place) == [("right", "right")] * 8
        assert "is given no work: no teacher in wrong" in caplog.text
        with pytest.raises(TeacherError, match=r"no teacher in (right|wrong)"):
            run(jobs.only_in, ["neither"] * 8, place)


def test_work_waits_for_a_first_worker(caplog: pytest.LogCaptureFixture) -> None:
    with scheduler() as address:
        outcomes = run_jobs(
            jobs.double,
            [2, 4],
            place=Place(scheduler=address),
            threads=1,
            libraries={},
            listen=heard,
        )
        with worker(address):
            assert sorted(outcomes) == [(2, 4), (4, 8)]


def test_an_address_where_nobody_listens_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cluster._CONNECT_SECONDS", 0.5)
    with pytest.raises(ClusterError, match=r"scheduler at tcp://127\.0\.0\.1:1: .*dask scheduler"):
        run(jobs.double, [2], Place(scheduler="127.0.0.1:1"))


def test_tls_without_certificates_says_what_to_set() -> None:
    with pytest.raises(ClusterError, match=r"distributed\.comm\.tls\.ca-file"):
        run(jobs.double, [2], Place(scheduler="tls://127.0.0.1:1"))


def test_local_workers_have_the_threads_stated_listen_on_loopback_and_leave_ctrl_c_alone() -> None:
    place = Place(workers=1)

    def only(work: Any) -> Any:
        outcomes = run_jobs(work, [1], place=place, threads=3, libraries={}, listen=heard)
        ((_, outcome),) = outcomes
        return outcome

    assert set(only(jobs.library_threads).values()) == {"3"}
    addresses = only(jobs.listening_addresses)
    assert len(addresses) >= 2
    assert set(addresses) == {"127.0.0.1"}
    assert signal.SIGINT in only(jobs.signals_blocked)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_no_more_local_workers_are_started_than_there_are_jobs() -> None:
    outcomes = run(jobs.process_id, [1, 2], Place(workers=5))
    assert os.getpid() not in {pid for _, pid in outcomes}
    assert len({pid for _, pid in outcomes}) <= 2


def test_a_job_over_the_memory_limit_is_given_up_and_the_rest_finishes() -> None:
    outcomes = dict(run(jobs.eat_memory, range(10, 16), Place(workers=2, memory_limit="600MB")))
    assert isinstance(outcomes.pop(13), QuarantineError)
    assert outcomes == {number: number for number in (10, 11, 12, 14, 15)}
