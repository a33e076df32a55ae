"""What this process runs on: device, threads, versions; and how its progress shows."""

import contextlib
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import BeamclipError

if TYPE_CHECKING:
    import torch

Send = Callable[[tuple[int, int]], None]


class Advance(Protocol):
    """Moves a progress bar by `count`; a note, if given, stands where the rate would."""

    def __call__(self, count: int, note: str = "") -> None: ...


_LIBRARIES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "pillow",
    "simplejpeg",
    "numpy",
    "zarr",
)
_METER_SECONDS = 0.5
LITTLE_BYTES = 64 << 20  # of shards: starting processes would take longer than they save
_COUNT = "{task.completed:,}/{task.fields[whole]} {task.fields[unit]}"


def pick_device(name: str, local_rank: int | None = None) -> "torch.device":
    """Return the device called `name` ("auto" takes a GPU if there is one).

    local_rank: of several processes on this machine; each takes the GPU of its number.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank is not None:
        name = f"cuda:{local_rank}"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise BeamclipError(f"--device {name!r}: expected auto, cpu, cuda or cuda:N")
    device, visible = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= visible:
        raise BeamclipError(f"--device {name}: {visible} CUDA devices are visible; use cpu or auto")
    return device


def available_cores() -> int:
    """Return how many cores this process may use, by its affinity and its container's quota."""
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        cores = min(cores, max(1, int(quota) // int(period)))  # "max" is no number: no quota
    return cores


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run the block with `count` torch threads: results on a CPU depend on their number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide pixels and vectors."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def git_commit() -> str | None:
    """Return the commit of the checkout this code runs from, or None outside of one."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():  # an installed copy may lie within someone else's checkout
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        result = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
        if result.returncode == 0:
            return result.stdout.strip()
    return None


@contextlib.contextmanager
def progress(title: str, total: int | None, unit: str | None) -> Iterator[Advance]:
    """Show a bar with rate and time left on a terminal; yield the function that moves it.

    unit: what is counted, or None to show a percentage alone. Silent where stderr is no terminal.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    if not sys.stderr.isatty():
        yield lambda count, note="": None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f}%" if unit is None else _COUNT),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        whole = "?" if total is None else f"{total:,}"
        task = bar.add_task(title, total=total, unit=unit, whole=whole, rate="")

        def advance(count: int, note: str = "") -> None:
            speed = bar.tasks[0].speed
            rate = f"{speed:,.0f} {unit}/s" if speed and unit else ""
            bar.update(task, advance=count, rate=note or rate)

        yield advance


class Meter:
    """Tells a listener how far a job is, a few times a second: work done, and views made.

    Work is counted in whatever the job's total is told in.
    """

    def __init__(self, send: Send) -> None:
        self._send, self._work, self._views = send, 0, 0
        self._sent = time.monotonic()

    def add(self, work: int, views: int) -> None:
        self._work, self._views = self._work + work, self._views + views
        if time.monotonic() - self._sent > _METER_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._send((self._work, self._views))
        self._work, self._views, self._sent = 0, 0, time.monotonic()
