"""Starts dask schedulers and workers as a user would: commands, on loopback and free ports."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
DASK = Path(sys.executable).with_name("dask")
_ON_LOOPBACK = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def started(
    command: Sequence[object], *, folder: Path | None = None, path: Path = ROOT, **variables: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command in the background; it and all that it started are killed at the end.

    path: where it finds this project's packages.
    """
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(path), **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def scheduler(*options: object, **variables: str) -> Iterator[str]:
    """Run a dask scheduler; yield its address."""
    port = free_port()
    command = [DASK, "scheduler", *_ON_LOOPBACK, "--port", port, *options]
    with started(command, **variables):
        wait_until_listening(port)
        yield f"127.0.0.1:{port}"


@contextmanager
def worker(
    address: str, *options: object, folder: Path | None = None, path: Path = ROOT, **variables: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a dask worker of one thread, under a nanny; yield the nanny."""
    command = [DASK, "worker", address, "--nthreads", 1, "--memory-limit", 0, *_ON_LOOPBACK]
    with started([*command, *options], folder=folder, path=path, **variables) as process:
        yield process


def wait_until_listening(port: int, seconds: float = 60) -> None:
    """Return once somebody accepts connections at a port of loopback."""

    def accepts() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(accepts, seconds)


def wait_for_workers(address: str, count: int) -> None:
    """Return once a cluster has so many workers."""
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=60)


def wait_until(happened: "object", seconds: float = 60) -> None:
    """Return once `happened()` is true; fail after a deadline."""
    assert callable(happened)
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def marked(mark: str) -> set[int]:
    """Return the processes that inherited an environment variable BEAMCLIP_TEST_MARK=mark."""
    wanted = f"BEAMCLIP_TEST_MARK={mark}".encode()
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
        except OSError:  # gone, or another user's
            continue
    return found
