"""Renders samples in processes of its own, or in this one; a decoder that dies costs its sample."""

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Protocol

from pipeline.errors import RecipeError, WorkerError
from pipeline.rendering import Rendered, RenderPlan, Request, Slab, render_into

_AHEAD = 4  # requests that wait in a process while it renders another
_AHEAD_BYTES = 16 << 20
_ATTEMPTS = 2  # a process may die for reasons of its own; the second time it is the sample
_MOST_KILLS = 5  # in a row, without a sample in between
_KILLED = (signal.SIGKILL, signal.SIGTERM)  # by somebody else: no decoder ends itself so
_SECONDS = 60.0
_SECONDS_VARIABLE = "BEAMCLIP_DECODE_SECONDS"


class RenderersError(WorkerError):
    """The processes that render do not work on this machine."""


class Renderers(Protocol):
    """Takes requests, gives (request, what became of it), in any order."""

    slab: Slab

    def has_room(self) -> bool:
        """Tell whether a request would be taken up at once."""

    def submit(self, plan: RenderPlan, request: Request) -> None:
        """Take a request; its slots are not to be touched until it is given back."""

    def collect(self, *, block: bool) -> list[tuple[Request, Rendered]]:
        """Return requests that are done; if told to, wait for some, or to be woken."""

    def wake(self) -> None:
        """End the waiting of another thread in `collect`."""

    @property
    def busy(self) -> bool:
        """Tell whether a request is still to be given back."""

    def close(self) -> None:
        """Stop; what was not given back is dropped."""


class RenderHere:
    """Renders in the calling thread: for little work, where processes cost more than they give."""

    def __init__(self, slots: int, size: int) -> None:
        self.slab = Slab(slots, size)
        self._done: list[tuple[Request, Rendered]] = []
        self._woken = threading.Event()

    def has_room(self) -> bool:
        """There is always room."""
        return True

    def submit(self, plan: RenderPlan, request: Request) -> None:
        """Render, and keep the result until it is collected."""
        self._done.append((request, render_into(self.slab, plan, request)))

    def collect(self, *, block: bool) -> list[tuple[Request, Rendered]]:
        """Return what is done; waits, if told to, only while that is nothing."""
        if block and not self._done:
            self._woken.wait()
        self._woken.clear()
        done, self._done = self._done, []
        return done

    def wake(self) -> None:
        """End the waiting of another thread in `collect`."""
        self._woken.set()

    @property
    def busy(self) -> bool:
        """Tell whether something waits to be collected."""
        return bool(self._done)

    def close(self) -> None:
        """Nothing to stop."""


class RenderPool:
    """Renders in processes, over a slab that they share; one that dies is replaced."""

    def __init__(self, processes: int, slots: int, size: int, seconds: float | None = None) -> None:
        """Start the processes. seconds: the most that one sample may take, 60 by default."""
        self.slab = Slab(slots, size)
        self._seconds = seconds or _sample_seconds()
        self._deaths: Counter[int] = Counter()
        self._kills = 0
        self._done: list[tuple[Request, Rendered]] = []
        self._wakeup, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._processes = [self._start() for _ in range(processes)]

    def has_room(self) -> bool:
        """Tell whether some process has less waiting than it may."""
        return any(process.has_room() for process in self._processes)

    def submit(self, plan: RenderPlan, request: Request) -> None:
        """Hand the request to the process that has least to do; raises RenderersError."""
        process = min(self._processes, key=lambda process: len(process.waiting))
        with _fatal():
            process.send(plan, request)
            self._look_after(process)

    def collect(self, *, block: bool) -> list[tuple[Request, Rendered]]:
        """Return requests that are done; if told to, wait for some, or to be woken.

        Raises RenderersError if a process does not start, or is killed over and over.
        """
        for key, _ in self._selector.select(None if block and not self._done else 0):
            if key.data is None:
                self._wakeup.recv(4096)
                continue
            with _fatal():
                self._done += key.data.receive()
                self._look_after(key.data)
        done, self._done = self._done, []
        for request, _ in done:
            self._kills = 0
            self._deaths.pop(request.slot, None)
        return done

    def wake(self) -> None:
        """End the waiting of another thread in `collect`."""
        with contextlib.suppress(BlockingIOError):  # it has been told already
            self._waker.send(b"!")

    @property
    def busy(self) -> bool:
        """Tell whether a request is still to be given back."""
        return bool(self._done) or any(process.waiting for process in self._processes)

    def close(self) -> None:
        """Stop every process."""
        self._selector.close()
        self._wakeup.close()
        self._waker.close()
        for process in self._processes:
            process.channel.close()  # all of them end at once
        for process in self._processes:
            process.stop()

    def _start(self) -> "_Process":
        process = _Process(self.slab, self._seconds)
        self._selector.register(process.channel, selectors.EVENT_READ, process)
        return process

    def _look_after(self, process: "_Process") -> None:
        """Replace a process that is gone; what waited goes on, but for what killed two."""
        if process.alive:
            return
        self._done += process.last_answers()
        self._selector.unregister(process.channel)
        how = process.stop()
        if not process.was_ready:
            raise RenderersError(f"a process that renders could not start ({_ending(how)})")
        waiting = list(process.waiting)
        if -how in _KILLED:
            self._kills += 1
            if self._kills >= _MOST_KILLS:
                raise RenderersError(
                    f"processes that render were killed {self._kills} times in a row "
                    f"({_ending(how)}): look for too little memory, or take fewer --renderers"
                )
        elif waiting:
            culprit = waiting[0][1]
            self._deaths[culprit.slot] += 1
            if self._deaths[culprit.slot] == _ATTEMPTS:
                waiting.pop(0)
                self._done.append((culprit, self._lost_to(how)))
        fresh = self._start()
        self._processes[self._processes.index(process)] = fresh
        for plan, request in waiting:
            fresh.send(plan, request)

    def _lost_to(self, how: int) -> Rendered:
        if how == -signal.SIGALRM:
            detail = f"still decoding after {self._seconds:g} s, twice"
            return Rendered(reason="decoder-hung", detail=detail)
        detail = f"the decoding process ended by {_ending(how)}, twice"
        return Rendered(reason="decoder-died", detail=detail)


class _Process:
    """One process, its connection, and what it was asked and has not answered."""

    def __init__(self, slab: Slab, seconds: float) -> None:
        ours, theirs = socket.socketpair()
        arguments = (theirs.fileno(), slab.descriptor, slab.slots, slab.size, seconds)
        self._process = subprocess.Popen(
            # -P: a folder called pipeline where the user stands must not take our place.
            [sys.executable, "-P", "-m", "pipeline.renderer", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
            start_new_session=True,  # Ctrl-C is the parent's to handle
            pass_fds=(theirs.fileno(), slab.descriptor),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        self.channel = Connection(ours.detach())
        self.waiting: deque[tuple[RenderPlan, Request]] = deque()
        self.alive, self.was_ready = True, False
        self._plan: RenderPlan | None = None

    def has_room(self) -> bool:
        """Tell whether it has less waiting than it may."""
        size = sum(len(request.encoded) for _, request in self.waiting)
        return not self.waiting or (len(self.waiting) <= _AHEAD and size < _AHEAD_BYTES)

    def send(self, plan: RenderPlan, request: Request) -> None:
        """Ask for a sample; if the process is gone, it waits for the one that comes after."""
        self.waiting.append((plan, request))
        try:
            if self._plan != plan:
                self.channel.send(plan)
                self._plan = plan
            self.channel.send(request)
        except OSError:
            self.alive = False

    def receive(self) -> list[tuple[Request, Rendered]]:
        """Wait for what it says next; return it, if it is an answer."""
        try:
            return self._understood(self.channel.recv())
        except (EOFError, OSError):
            self.alive = False
            return []

    def last_answers(self) -> list[tuple[Request, Rendered]]:
        """Return what a process that is gone had still answered, in the order of asking."""
        done = []
        with contextlib.suppress(EOFError, OSError):
            while self.channel.poll():
                done += self._understood(self.channel.recv())
        return done

    def _understood(self, answer: tuple[int, Rendered] | None) -> list[tuple[Request, Rendered]]:
        if answer is None:
            self.was_ready = True
            return []
        slot, rendered = answer
        request = self.waiting.popleft()[1]
        if request.slot != slot:
            raise RenderersError("a process that renders answered another question")
        return [(request, rendered)]

    def stop(self) -> int:
        """End the process; return how it ended, as subprocess counts: minus the signal."""
        self.channel.close()
        try:
            return self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


@contextlib.contextmanager
def _fatal() -> Iterator[None]:
    """Turn what the machine refuses (processes, memory, descriptors) into a RenderersError."""
    try:
        yield
    except (OSError, MemoryError) as error:
        what = f"{type(error).__name__}: {error}"
        raise RenderersError(f"processes that render cannot be kept up ({what})") from error


def _sample_seconds() -> float:
    text = os.environ.get(_SECONDS_VARIABLE) or str(_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise RecipeError(f"{_SECONDS_VARIABLE}={text!r}: expected seconds, as in 60")
    return seconds


def _ending(how: int) -> str:
    return f"signal {-how}" if how < 0 else f"exit code {how}"
