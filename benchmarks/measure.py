"""Measures pairs in turn and says them as rows: a figure, its spread, and what it is."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROUNDS = 5


@dataclass(frozen=True)
class Row:
    """One line of the table: the median of several rounds, and their least and greatest."""

    name: str
    median: float
    low: float
    high: float
    unit: str
    target: str = ""
    note: str = ""

    def as_text(self) -> tuple[str, ...]:
        """Return the cells of the table."""
        spread = "" if self.low == self.high else f"{self.low:.4g} to {self.high:.4g}"
        return self.name, f"{self.median:.4g} {self.unit}", spread, self.target, self.note


def row(name: str, values: Sequence[float], unit: str, target: str = "", note: str = "") -> Row:
    """Sum up the rounds of one figure."""
    return Row(name, statistics.median(values), min(values), max(values), unit, target, note)


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes by the wall clock."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turn(*works: Callable[[], float], rounds: int = ROUNDS) -> list[list[float]]:
    """Measure each in turn, so that what else the machine does meets all of them alike."""
    found: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for values, work in zip(found, works, strict=True):
            values.append(work())
    return found


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Divide round by round."""
    return [value / other for value, other in zip(values, others, strict=True)]


def cpu_seconds(*others: int) -> float:
    """Return the processor time of this process and of others, in seconds."""
    mine = os.times()
    return mine.user + mine.system + sum(_cpu_seconds(number) for number in others)


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def pinned(count: int, *others: int) -> Iterator[None]:
    """Keep this process and others, with every thread, to `count` cores for a while."""
    cores = os.sched_getaffinity(0)
    _pin(set(sorted(cores)[:count]), os.getpid(), *others)
    try:
        yield
    finally:
        _pin(cores, os.getpid(), *others)


def _pin(cores: set[int], *processes: int) -> None:
    for process in processes:
        for thread in Path(f"/proc/{process}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(int(thread.name), cores)


def children(pattern: str) -> list[int]:
    """Return this process's children whose command line holds `pattern`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1]
            command = (folder / "cmdline").read_text(encoding="utf-8")
        except OSError:
            continue
        if int(parent) == os.getpid() and pattern in command:
            found.append(int(folder.name))
    return found
