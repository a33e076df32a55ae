"""Decides which worker does which job next, and what a worker's death says of its jobs.

Nothing here knows of dask: the engine tells what happened and does what is decided. A worker is
named by its address; it is given two jobs at a time, so that it never waits for the next one.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pipeline.errors import BeamclipError

Job = TypeVar("Job")

MAX_ATTEMPTS = 3
MAX_DEATHS = 3
_IN_HAND = 2  # jobs a worker is given at a time: one to do, one to go on with


@dataclass(eq=False)
class Task(Generic[Job]):
    """One job on its way: what became of the attempts so far."""

    job: Job
    attempts: int = 0  # ended by an error
    deaths: int = 0  # worker processes that ended while they had it
    failed_on: set[str] = field(default_factory=set)


def worth_retrying(error: BaseException) -> bool:
    """Whether another attempt may end otherwise.

    Our own errors state a fact about the input; anything else (a file server that hiccups, a device
    out of memory) may pass.
    """
    return isinstance(error, Exception) and not isinstance(error, BeamclipError)


class Dispatch(Generic[Job]):
    """The jobs that wait, and those in the hands of workers.

    A job whose worker died is a suspect: it is next tried on a worker that has nothing else, so
    that whoever shared a worker with a job that kills is cleared, and is itself given up after
    MAX_DEATHS.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._waiting = deque(Task(job) for job in jobs)
        self._suspects: deque[Task[Job]] = deque()
        self._in_hand: dict[str, list[Task[Job]]] = {}
        self._limits: dict[str, int] = {}

    @property
    def workers(self) -> set[str]:
        """The workers that jobs are given to."""
        return set(self._in_hand)

    @property
    def unfinished(self) -> bool:
        """Whether a job waits or is being done."""
        return bool(self._waiting or self._suspects or any(self._in_hand.values()))

    def join(self, worker: str, threads: int) -> None:
        """Count on a worker; one that has several threads still does one job at a time."""
        self._in_hand.setdefault(worker, [])
        self._limits[worker] = _IN_HAND if threads == 1 else 1

    def leave(self, worker: str, *, died: bool) -> tuple[list[Task[Job]], list[Task[Job]]]:
        """Take a worker off; return the tasks it had, and those of them that are given up.

        died: it ended while it worked; False if it went in an orderly way, which is no job's fault.
        """
        held = self._in_hand.pop(worker, [])
        given_up = []
        for task in reversed(held):
            task.deaths += died
            if task.deaths >= MAX_DEATHS:
                given_up.append(task)
            elif task.deaths:
                self._suspects.appendleft(task)
            else:
                self._waiting.appendleft(task)
        return held, given_up

    def finish(self, worker: str, task: Task[Job]) -> None:
        """Take a job out of a worker's hands, for good."""
        if task in self._in_hand.get(worker, []):
            self._in_hand[worker].remove(task)

    def fail(self, worker: str, task: Task[Job], error: BaseException) -> bool:
        """Take a job out of a worker's hands; True if it is to be tried again, elsewhere if it can.

        A suspect stays one: only another worker to itself can clear it.
        """
        self.finish(worker, task)
        task.attempts += 1
        task.failed_on.add(worker)
        if task.attempts >= MAX_ATTEMPTS or not worth_retrying(error):
            return False
        (self._suspects if task.deaths else self._waiting).append(task)
        return True

    def assign(self) -> list[tuple[str, Task[Job]]]:
        """Give jobs to workers that have room, and return who got what.

        The second job of a worker is only given while enough wait for all: at the end of a run none
        lies behind another while a worker idles.
        """
        given: list[tuple[str, Task[Job]]] = []
        for depth in range(_IN_HAND):
            for worker, held in self._in_hand.items():
                if len(held) != depth or depth >= self._limits[worker]:
                    continue
                if depth and (held[0].deaths or len(self._waiting) < len(self._in_hand)):
                    continue
                if task := self._next_for(worker, alone=not held):
                    held.append(task)
                    given.append((worker, task))
        return given

    def _next_for(self, worker: str, *, alone: bool) -> Task[Job] | None:
        """Take the next job for a worker, passing over those it failed while another could try."""
        for queue in (self._suspects, self._waiting) if alone else (self._waiting,):
            for task in queue:
                if worker not in task.failed_on or task.failed_on >= self.workers:
                    queue.remove(task)
                    return task
        return None
