"""Opens the dask cluster that jobs run on: one of its own on loopback, or a running one."""

import contextlib
import ipaddress
import json
import logging
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from pipeline.errors import ClusterError

_CONNECT_SECONDS = 10
_SILENCE = {"DASK_LOGGING__DISTRIBUTED": "critical"}
_LEAST_BYTES = 2**20  # a number alone would be bytes, and kill every worker
_ENCRYPTED = ("tls", "wss")
_PLAIN = ("tcp", "ws", "ucx", "ucxx")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Place:
    """Where jobs run: in this process, on `workers` processes of this machine, or on a cluster.

    workers: 0 is this process. memory_limit: of each of these workers ("8GiB"); over it, it is
    killed. scheduler (an address) or scheduler_file: a running dask cluster, which must be on
    loopback or encrypted unless `insecure`. device: of the teacher. renderers: processes that
    decode and render for each that embeds; by default one per core where there is much to do.
    Raises ValueError for options that contradict each other.
    """

    workers: int = 0
    memory_limit: str | None = None
    scheduler: str | None = None
    scheduler_file: Path | None = None
    insecure: bool = False
    device: str = "auto"
    renderers: int | None = None

    def __post_init__(self) -> None:
        if self.scheduler and self.scheduler_file:
            raise ValueError("--scheduler and --scheduler-file both name a cluster: give one")
        if self.is_running_cluster and self.workers:
            raise ValueError("a running cluster has workers of its own: leave --workers out")
        if self.memory_limit and not self.workers:
            raise ValueError(
                "--memory-limit is of the processes of --workers; a running cluster's are limited "
                "by `dask worker --memory-limit`"
            )
        if self.insecure and not self.is_running_cluster:
            raise ValueError("--insecure is about --scheduler or --scheduler-file: name one")

    @property
    def is_running_cluster(self) -> bool:
        """Whether workers are somebody else's to start and stop."""
        return bool(self.scheduler or self.scheduler_file)

    @property
    def is_here(self) -> bool:
        """Whether jobs run in this process."""
        return not self.workers and not self.is_running_cluster


HERE = Place()


def check_place(place: Place) -> None:
    """Raise ClusterError for what can be told of a place in a moment, before any work."""
    memory_bytes(place.memory_limit)
    if place.is_running_cluster:
        scheduler_address(place)


@contextlib.contextmanager
def connected(place: Place, *, most: int, threads: int) -> Iterator[Any]:
    """Yield a dask client of the place, which is left, and stopped if it is our own, at the end.

    most: workers that there is work for. threads: of each local worker's libraries. Raises
    ClusterError if there is no cluster at the address, or none that may be trusted with it.
    """
    with _quiet():
        if place.is_running_cluster:
            with _join(scheduler_address(place)) as client:
                yield client
        else:
            count = min(place.workers, most)
            with _local_cluster(count, threads, memory_bytes(place.memory_limit)) as client:
                yield client


def memory_bytes(text: str | None) -> int:
    """Return a size such as "8GiB" in bytes, 0 for None; raises ClusterError."""
    from dask.utils import parse_bytes

    if text is None:
        return 0
    try:
        size = parse_bytes(text)
    except ValueError:
        size = 0
    if size < _LEAST_BYTES:
        raise ClusterError(f"--memory-limit {text!r}: expected a size, such as 8GiB or 500MB")
    return int(size)


def scheduler_address(place: Place) -> str:
    """Return the address of a running cluster, if it may be used; raises ClusterError."""
    address = place.scheduler or _address_in(place.scheduler_file or Path())
    if "://" not in address:
        address = f"tcp://{address}"
    scheme, _, rest = address.partition("://")
    if scheme not in (*_ENCRYPTED, *_PLAIN):
        known = ", ".join((*_ENCRYPTED, *_PLAIN))
        raise ClusterError(f"scheduler {address}: expected SCHEME://HOST:PORT, of {known}")
    host, colon, port = rest.rpartition(":")
    if not (colon and host and port.isdecimal()):
        raise ClusterError(f"scheduler {address}: expected {scheme}://HOST:PORT")
    if scheme in _PLAIN and not place.insecure and not is_loopback(host.strip("[]")):
        raise ClusterError(
            f"scheduler {address} is neither encrypted nor on this machine. Whoever reaches a "
            "scheduler runs code on its workers and on this machine, and whoever listens reads "
            "along: use tls:// with dask's TLS settings, or give --insecure if nobody else is on "
            "that network"
        )
    return address


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by a number, or by a name all of whose addresses are."""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(str(number).split("%")[0]).is_loopback for number in found)


def _address_in(file: Path) -> str:
    """Read the address that `dask scheduler --scheduler-file` left."""
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["address"])
    except OSError as error:
        raise ClusterError(
            f"--scheduler-file {file}: {error.strerror}; expected the file that "
            "`dask scheduler --scheduler-file` writes"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise ClusterError(
            f"--scheduler-file {file}: holds no address; expected the file that "
            "`dask scheduler --scheduler-file` writes"
        ) from None


def _join(address: str) -> Any:
    from distributed import Client

    try:
        return Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        tls = (
            "; set distributed.comm.tls.ca-file, .client.cert and .client.key in dask's "
            "configuration"
        )
        raise ClusterError(
            f"no use of the scheduler at {address}: {error or type(error).__name__}. Start one "
            f"there with `dask scheduler`, or correct the address"
            f"{tls if address.startswith(_ENCRYPTED) else ''}"
        ) from error


@contextlib.contextmanager
def _environment_kept() -> Iterator[None]:
    """Put this process's environment back: what a nanny sets for its worker, it sets here too."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def _local_cluster(workers: int, threads: int, limit_bytes: int) -> Iterator[Any]:
    import dask
    from distributed import Client, LocalCluster, Security

    # Nannies preset one thread for everything; results depend on the number, so it is stated.
    environment = {name: str(threads) for name in _THREAD_VARIABLES}
    settings = {
        # A worker sets its log up before it hears of any other setting.
        "distributed.nanny.pre-spawn-environ": {**environment, **_SILENCE},
        # A worker near its limit would be paused, and wait for ever; over it, it is killed.
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": 1.0,
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment_kept())
        stack.enter_context(dask.config.set(settings))
        with _interrupts_held():
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    memory_limit=limit_bytes,
                    security=Security(require_encryption=False),
                )
            )
            client = stack.enter_context(Client(cluster, set_as_default=False))
        yield client


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold back SIGINT, in this thread and in all that is started from it.

    Ctrl-C reaches every process of a terminal: the workers must leave it to the driver, or each
    prints where it was, and dies as if its job had killed it.
    """
    resource_tracker.ensure_running()  # whose start would let SIGINT through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence dask's log, which prints tracebacks of what is told in words here."""
    import distributed  # sets the levels of its loggers as it is imported

    family = [n for n in logging.root.manager.loggerDict if n.split(".")[0] == distributed.__name__]
    before = {name: logging.getLogger(name).level for name in family}
    for name in family:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
