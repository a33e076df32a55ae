"""Runs independent jobs, here or on dask workers, and yields what became of each.

Nothing about correctness rests on dask: a job may run twice, and must publish once by itself.
"""

import contextlib
import logging
import pickle
import queue
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Generic, TypeVar

from pipeline import __version__
from pipeline.cluster import Place, connected
from pipeline.dispatch import MAX_ATTEMPTS, MAX_DEATHS, Dispatch, Task, worth_retrying
from pipeline.errors import (
    ClusterError,
    QuarantineError,
    StorageError,
    TeacherError,
    WorkerError,
)
from pipeline.runtime import Send

Job = TypeVar("Job")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)
_UNFIT = (WorkerError, TeacherError, ImportError)  # of the worker, not of the job
_LISTEN_SECONDS = 1.0
_RETURN_SECONDS = 120.0  # for a local worker to come back


def run_jobs(
    work: Callable[[Job, Send], Result],
    jobs: Sequence[Job],
    *,
    place: Place,
    threads: int,
    libraries: Mapping[str, str],
    listen: Send,
) -> Generator[tuple[Job, Result | BaseException], None, None]:
    """Yield (job, result or error) as jobs finish, in any order.

    work(job, send): a function that workers can import; it may call send((work, views)) now and
    then, which `listen` hears. threads: of a local worker's libraries. libraries: versions that a
    worker must have, by distribution.

    An error that is not our own is tried three times in all. A job whose worker dies is tried again
    on a worker to itself; the third death ends it with a QuarantineError. A worker that would do
    the work otherwise (WorkerError, TeacherError, ImportError) is set aside. No job's error stops
    the others but StorageError, which is raised; so are ClusterError if the cluster is lost and a
    worker's own error if none is left. Close the iterator to stop early.
    """
    if not jobs:
        return
    if place.is_here:
        for job in jobs:
            yield job, _do_here(work, job, listen)
        return
    with connected(place, most=len(jobs), threads=threads) as client:
        driver = _Driver(client, work, jobs, libraries=libraries, listen=listen)
        yield from driver.run(patient=place.is_running_cluster)


def _do_here(work: Callable[[Job, Send], Result], job: Job, listen: Send) -> Result | BaseException:
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            return work(job, listen)
        except StorageError:
            raise
        except Exception as error:  # as on dask: whatever one job meets is its own
            if attempt == MAX_ATTEMPTS or not worth_retrying(error):
                return error
    raise AssertionError("a last attempt returns")


@dataclass(frozen=True)
class _Joined:
    worker: str


@dataclass(frozen=True)
class _Left:
    worker: str
    died: bool


@dataclass(frozen=True)
class _Done:
    key: str


@dataclass(frozen=True)
class _Progress:
    progress: tuple[int, int]


@dataclass(frozen=True)
class _Returned:
    ticket: str
    parcel: bytes


_News = _Joined | _Left | _Done | _Progress | _Returned


@dataclass(frozen=True)
class _Running(Generic[Job]):
    future: Any
    ticket: str
    worker: str
    task: Task[Job]


class _Driver(Generic[Job, Result]):
    """Carries out what Dispatch decides on a dask cluster, and tells it what happened.

    Each job is bound to one worker: left to itself, dask moves jobs about, and when a worker dies
    blames every job that was queued there.
    """

    def __init__(
        self,
        client: Any,
        work: Callable[[Job, Send], Result],
        jobs: Sequence[Job],
        *,
        libraries: Mapping[str, str],
        listen: Send,
    ) -> None:
        self._client, self._work, self._listen = client, work, listen
        self._libraries = {"beamclip": __version__, **libraries}
        self._dispatch = Dispatch(jobs)
        self._running: dict[str, _Running[Job]] = {}
        self._news: queue.Queue[_News] = queue.Queue()
        self._topic = f"beamclip-{uuid.uuid4().hex}"
        self._returned: dict[str, bytes] = {}
        self._unfit: dict[str, Exception] = {}
        self._alone_since = time.monotonic()
        self._waits = False

    def run(self, *, patient: bool) -> Iterator[tuple[Job, Result | BaseException]]:
        """Yield outcomes until every job has one. patient: wait for workers however long."""
        with self._subscribed():
            for worker, threads in self._client.nthreads().items():
                self._dispatch.join(worker, threads)
            while self._dispatch.unfinished:
                self._check_workers(patient)
                for worker, task in self._dispatch.assign():
                    self._submit(worker, task)
                yield from self._hear()

    @contextlib.contextmanager
    def _subscribed(self) -> Iterator[None]:
        """Turn what the scheduler tells, in a thread of dask's, into news for this one."""

        def workers_changed(event: tuple[float, Mapping[str, Any]]) -> None:
            match event[1]:
                case {"action": "add-worker", "worker": str(worker)}:
                    self._news.put(_Joined(worker))
                case {"action": "remove-worker", "worker": str(worker), "expected": expected}:
                    self._news.put(_Left(worker, died=not expected))

        def worker_told(event: tuple[float, tuple[str, Any]]) -> None:
            ticket, content = event[1]
            progress = isinstance(content, tuple | list)
            told = _Progress((content[0], content[1])) if progress else _Returned(ticket, content)
            self._news.put(told)

        self._client.subscribe_topic("all", workers_changed)
        self._client.subscribe_topic(self._topic, worker_told)
        try:
            yield
        finally:
            if self._client.status == "running":
                for topic in ("all", self._topic):
                    self._client.unsubscribe_topic(topic)

    def _submit(self, worker: str, task: Task[Job]) -> None:
        ticket = uuid.uuid4().hex
        future = self._client.submit(
            _attempt,
            pickle.dumps((self._work, task.job)),
            self._libraries,
            self._topic,
            ticket,
            pure=False,
            workers=[worker],
            allow_other_workers=False,
        )
        self._running[future.key] = _Running(future, ticket, worker, task)
        future.add_done_callback(lambda done: self._news.put(_Done(done.key)))

    def _hear(self) -> Iterator[tuple[Job, Result | BaseException]]:
        """Wait a moment for news and yield the jobs that end by it."""
        with contextlib.suppress(queue.Empty):
            match self._news.get(timeout=_LISTEN_SECONDS):
                case _Progress(progress):
                    self._listen(progress)
                case _Returned(ticket, parcel):
                    self._returned[ticket] = parcel
                case _Joined(worker):
                    self._join(worker)
                case _Left(worker, died):
                    yield from self._leave(worker, died=died)
                case _Done(key) if key in self._running:
                    self._check_scheduler()
                    yield from self._settle(self._running.pop(key))
        self._check_scheduler()

    def _check_scheduler(self) -> None:
        """Raise if the scheduler is gone: it forgot all jobs, even if it answers again."""
        if self._client.status != "running":
            raise ClusterError(
                f"lost the scheduler {self._client.scheduler.address}: what is published is kept. "
                "Start a cluster again, then the same command: it goes on from there"
            )

    def _join(self, worker: str) -> None:
        threads = self._client.nthreads().get(worker)
        if threads is None or worker in self._dispatch.workers:
            return
        if threads > 1:
            _log.warning(
                "worker %s has %d threads and does one unit at a time: start workers with "
                "`dask worker --nthreads 1 --nworkers %d`",
                *(worker, threads, threads),
            )
        self._dispatch.join(worker, threads)

    def _leave(self, worker: str, *, died: bool) -> Iterator[tuple[Job, BaseException]]:
        held, given_up = self._dispatch.leave(worker, died=died)
        if not self._dispatch.workers:
            self._alone_since = time.monotonic()
        for key in [key for key, running in self._running.items() if running.worker == worker]:
            self._running.pop(key).future.release()
        if died and held:
            _log.warning(
                "a worker process died (%s): what it had is tried again, alone on a worker", worker
            )
        for task in given_up:
            yield (
                task.job,
                QuarantineError(
                    f"{MAX_DEATHS} worker processes died with it in hand, the last of them with "
                    "nothing else: look for too little memory, or a library that crashes on its "
                    "content"
                ),
            )

    def _settle(self, running: _Running[Job]) -> Iterator[tuple[Job, Result | BaseException]]:
        """Learn how an attempt ended; yield the job unless it is to be tried again."""
        worker, task = running.worker, running.task
        parcel = self._returned.pop(running.ticket, None)
        outcome = _error(running.future) if parcel is None else pickle.loads(parcel)
        running.future.release()
        if isinstance(outcome, StorageError):
            raise outcome
        if isinstance(outcome, _UNFIT):
            self._set_aside(worker, outcome)
        elif not isinstance(outcome, BaseException):
            self._dispatch.finish(worker, task)
            yield task.job, outcome
        elif not self._dispatch.fail(worker, task, outcome):
            yield task.job, outcome

    def _set_aside(self, worker: str, error: Exception) -> None:
        """Give a worker nothing more, and what it had to others."""
        _log.warning("worker %s is given no work: %s", worker, error)
        self._unfit[worker] = error
        list(self._leave(worker, died=False))

    def _check_workers(self, patient: bool) -> None:
        """Raise if there is nobody left to wait for."""
        if self._dispatch.workers:
            self._waits = False
            return
        if self._unfit:
            raise next(reversed(self._unfit.values()))
        if patient and not self._waits:
            self._waits = True
            address = self._client.scheduler.address
            _log.warning(
                "no worker at %s: waiting; start some with `dask worker %s --nthreads 1`",
                *(address, address),
            )
        if not patient and time.monotonic() - self._alone_since > _RETURN_SECONDS:
            raise ClusterError(
                "every local worker died and none came back: look for too little memory or a "
                "--memory-limit below what a worker needs to start"
            )


def _error(future: Any) -> BaseException:
    """Return why a future that is done has no result."""
    error = future.exception() if future.status == "error" else None
    return error or RuntimeError(f"dask gave the job up: {future.status}")


def _attempt(parcel: bytes, libraries: Mapping[str, str], topic: str, ticket: str) -> None:
    """On a worker: do one job, if this process would do it as the driver would.

    The result goes the way of messages, ahead of the word that the task is done: left on the worker
    to be fetched, it would be lost with a worker that dies of its next job.
    """
    from distributed import get_worker

    _check_libraries(libraries)
    # Unpacked only now: of another version, even the classes may differ.
    work, job = pickle.loads(parcel)
    worker = get_worker()
    result = work(job, lambda progress: worker.log_event(topic, (ticket, progress)))
    worker.log_event(topic, (ticket, pickle.dumps(result)))


def _check_libraries(wanted: Mapping[str, str]) -> None:
    different = [
        f"{name} {found} where the driver has {version}"
        for name, version in wanted.items()
        if (found := _installed(name)) != version
    ]
    if different:
        raise WorkerError(f"it runs {', '.join(different)}: install the same versions there")


def _installed(name: str) -> str:
    if name == "beamclip":
        return __version__  # of the code that runs, which an editable install may differ from
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(none)"
