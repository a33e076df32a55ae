"""What a process keeps between units: its teacher, and the processes that render for it."""

import atexit
import contextlib
import threading
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from pipeline import runtime
from pipeline.renderpool import Renderers, RenderHere, RenderPool
from pipeline.teacher import Teacher, TeacherOptions, load_teacher

_in_use = threading.Lock()
_renderers: dict[tuple[int, int, int], Renderers] = {}


@lru_cache(maxsize=1)
def resident_teacher(spec: TeacherOptions, device: str) -> Teacher:
    """Return this process's teacher, loaded at first use."""
    return load_teacher(spec, runtime.pick_device(device))


@lru_cache(maxsize=1)
def resident_fingerprint(spec: TeacherOptions, device: str) -> Mapping[str, Any]:
    """Return the fingerprint of this process's teacher, hashed once."""
    return resident_teacher(spec, device).fingerprint()


@contextlib.contextmanager
def renderers_in_use(processes: int, slots: int, size: int) -> Iterator[Renderers]:
    """Yield this process's renderers, started at first use; at least `slots` of `size` pixels.

    processes: 0 renders in the calling thread. They serve one user at a time, others wait. Those of
    another kind, or left busy by a failure, are stopped first.
    """
    with _in_use:
        yield _resident_renderers(processes, slots, size)


def _resident_renderers(processes: int, slots: int, size: int) -> Renderers:
    for key, renderers in list(_renderers.items()):
        if key[0] != processes or key[1] < slots or key[2] != size or renderers.busy:
            stop_renderers()
    if not _renderers:
        made = RenderPool(processes, slots, size) if processes else RenderHere(slots, size)
        _renderers[processes, slots, size] = made
    return next(iter(_renderers.values()))


@atexit.register
def stop_renderers() -> None:
    """Stop the processes that render, if there are any."""
    while _renderers:
        _renderers.popitem()[1].close()
