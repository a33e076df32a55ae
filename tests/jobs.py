"""Jobs for the engine's tests, which worker processes must be able to import."""

import os
import signal
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ShardError, TeacherError
from pipeline.runtime import Send


@dataclass(frozen=True)
class Trial:
    """A job whose first attempts end badly; `folder` counts them across processes."""

    folder: Path
    number: int
    deaths: int = 0
    errors: int = 0

    def attempt(self) -> int:
        """Count this attempt, from 1."""
        path = self.folder / f"{self.number}"
        with open(path, "ab") as file:
            file.write(b".")
        return path.stat().st_size


def double(job: int, send: Send) -> int:
    """Double even numbers, fail on odd ones in several ways."""
    if job == 3:
        raise ShardError(f"bad {job}")
    if job == 5:
        raise OSError(f"bad {job}")
    send((1, job))
    return 2 * job


def try_hard(job: Trial, send: Send) -> int:
    """Kill this process, or raise, as often as the job says; then return its number."""
    attempt = job.attempt()
    if attempt <= job.deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    if attempt <= job.deaths + job.errors:
        raise OSError(f"attempt {attempt}")
    return job.number


def process_id(job: int, send: Send) -> int:
    """Say which process works."""
    return os.getpid()


def library_threads(job: int, send: Send) -> dict[str, str | None]:
    """Say how many threads this process's libraries were told to use."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {name: os.environ.get(name) for name in names}


def signals_blocked(job: int, send: Send) -> set[int]:
    """Say which signals this process's main thread holds back."""
    status = Path(f"/proc/{os.getpid()}/status").read_text(encoding="ascii")
    mask = int(
        next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")), 16
    )
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def eat_memory(job: int, send: Send) -> int:
    """Take more and more memory if the job is 13."""
    eaten = []
    while job == 13:
        eaten.append(bytearray(20_000_000))
        threading.Event().wait(0.02)
    return job


def only_in(job: str, send: Send) -> str:
    """Work in one folder only; elsewhere the process is unfit, as without the right teacher."""
    if Path.cwd().name != job:
        raise TeacherError(f"no teacher in {Path.cwd().name}")
    return Path.cwd().name


def listening_addresses(job: int, send: Send) -> list[str]:
    """Return the addresses that this process and its parent listen at."""
    import psutil

    found = []
    for process in (psutil.Process(), psutil.Process(os.getppid())):
        for connection in process.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.family in (socket.AF_INET, socket.AF_INET6)
                found.append(connection.laddr.ip)
    return found
