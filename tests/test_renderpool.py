"""The pool: every request comes back once, whatever becomes of the processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.decode import DecodePolicy
from pipeline.errors import RecipeError
from pipeline.rendering import Rendered, RenderPlan, Request
from pipeline.renderpool import Renderers, RenderersError, RenderHere, RenderPool
from pipeline.schedule import Schedule
from tests.images import picture
from tests.inputs import encode

PLAN = RenderPlan(Schedule(), 0, 1, DecodePolicy(), 24, 64)
REQUESTS = [Request(2 * i, f"{i}", encode(picture(40 + i, 50))) for i in range(32)]


@pytest.fixture(scope="module")
def pool() -> Iterator[RenderPool]:
    made = RenderPool(2, 64, 24, seconds=60)
    yield made
    made.close()


def children() -> list[int]:
    """Return the processes that render for this one."""
    listed = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "pipeline.renderer"],
        capture_output=True,
        text=True,
        check=False,
    )
    return [int(line) for line in listed.stdout.split()]


def all_of(renderers: Renderers, requests: list[Request]) -> dict[str, Rendered]:
    """Submit everything; return what came back by key, each exactly once."""
    found: dict[str, Rendered] = {}
    waiting = list(reversed(requests))
    while waiting or renderers.busy:
        while waiting and renderers.has_room():
            renderers.submit(PLAN, waiting.pop())
        for request, rendered in renderers.collect(block=True):
            assert request.key not in found
            found[request.key] = rendered
    return found


def test_processes_render_what_the_calling_thread_renders(pool: RenderPool) -> None:
    here = RenderHere(64, 24)
    expected = all_of(here, REQUESTS)
    assert all_of(pool, REQUESTS) == expected
    assert len(expected) == len(REQUESTS)
    assert torch.equal(pool.slab.views_R3SS, here.slab.views_R3SS)
    assert (pool.slab.params_RP == here.slab.params_RP).all()


def test_a_process_that_is_killed_loses_nothing(pool: RenderPool) -> None:
    expected = all_of(RenderHere(64, 24), REQUESTS)
    before = children()
    assert len(before) == 2
    for request in REQUESTS[:4]:
        pool.submit(PLAN, request)
    os.kill(before[0], signal.SIGKILL)
    found = all_of(pool, REQUESTS[4:])
    assert {**{r.key: expected[r.key] for r in REQUESTS[:4]}, **found} == expected
    assert len(children()) == 2
    assert children() != before


def test_large_requests_do_not_wait_for_each_other(pool: RenderPool) -> None:
    """Far more than a pipe holds: whoever submits is not held up."""
    large = encode(picture(900, 800))
    assert len(large) > 10_000
    requests = [Request(2 * i, f"large-{i}", large + bytes(2_000_000)) for i in range(8)]
    assert len(all_of(pool, requests)) == 8


@pytest.mark.parametrize("here", [True, False])
def test_waiting_can_be_ended_from_another_thread(pool: RenderPool, here: bool) -> None:
    renderers = RenderHere(64, 24) if here else pool
    ended: list[object] = []
    thread = threading.Thread(target=lambda: ended.append(renderers.collect(block=True)))
    thread.start()
    renderers.wake()
    thread.join(timeout=60)
    assert ended == [[]]


def test_processes_that_cannot_start_are_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    false = tmp_path / "python"
    false.write_text("#!/bin/sh\nexit 5\n", encoding="utf-8")
    false.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(false))
    renderers = RenderPool(1, 64, 24)
    with pytest.raises(RenderersError, match=r"could not start \(exit code 5\)"):
        all_of(renderers, REQUESTS[:1])
    renderers.close()


def test_a_folder_of_our_name_where_the_user_stands_takes_nobodys_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pipeline", "torch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit(9)", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    renderers = RenderPool(1, 64, 24)
    assert len(all_of(renderers, REQUESTS[:1])) == 1
    renderers.close()


@pytest.mark.slow
def test_processes_that_are_killed_over_and_over_are_an_error_and_no_skip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the kernel does where memory is short: the sample is not to blame."""
    monkeypatch.setenv("BEAMCLIP_FAULT_POINT", "decode-0")
    renderers = RenderPool(1, 64, 24)
    with pytest.raises(RenderersError, match=r"killed 5 times in a row \(signal 9\)"):
        all_of(renderers, REQUESTS[:1])
    renderers.close()


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan"])
def test_a_senseless_time_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEAMCLIP_DECODE_SECONDS", text)
    with pytest.raises(RecipeError, match="expected seconds"):
        RenderPool(1, 64, 24)


ORPHANS = """
import os, sys
from pipeline.renderpool import RenderPool
from tests.test_renderpool import PLAN, REQUESTS, all_of, children
pool = RenderPool(2, 64, 24)
all_of(pool, REQUESTS)
print(*children(), flush=True)
sys.stdin.read()
"""


def test_processes_end_with_the_one_that_started_them() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHANS],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    orphans = [int(number) for number in parent.stdout.readline().split()]
    assert len(orphans) == 2
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{number}") for number in orphans):
        assert time.monotonic() < deadline
    parent.stdin.close()
    parent.stdout.close()
