"""Runs things on the tests' real inputs: training, probes, code in another process."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline import probing, runtime, stage_two
from pipeline.cache.scratch import SCRATCH_VARIABLE
from pipeline.recipe import Recipe, load_recipe
from pipeline.shards import find_shards

MODEL = "test_resnet"  # timm's own for tests: half a million parameters


def small_recipe(file: Path, *overrides: str) -> Recipe:
    """Load the tests' recipe with a very small student."""
    return load_recipe(str(file), (f"student.model={MODEL}", *overrides))


def train(
    recipe: Recipe,
    cache: Path,
    shards: Path,
    run: Path,
    *,
    resume: bool = False,
    workers: int = 0,
    generation: int | None = None,
) -> dict[str, Any]:
    """Run stage two in this process."""
    found = stage_two.train(
        recipe,
        [cache],
        find_shards([str(shards)]),
        run,
        resume=resume,
        loading=stage_two.Loading(workers=workers),
        device="cpu",
        generation=generation,
    )
    return found[run]


def probe(run: Path, cache: Path | None = None) -> Any:
    """Score a run in this process."""
    return probing.probe(run, cache, (), workers=0, device="cpu")


def said_elsewhere(code: str) -> str:
    """Run Python code in a fresh process at the repository's root; return what it prints."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@contextmanager
def alone(scratch: Path) -> Iterator[None]:
    """Give a fixture that outlives one test what every test has: own scratch, one thread."""
    with pytest.MonkeyPatch.context() as patch, runtime.torch_threads(1):
        patch.setenv(SCRATCH_VARIABLE, str(scratch))
        yield


@contextmanager
def held_elsewhere(lock: Path) -> Iterator[None]:
    """Hold a lock file in another process."""
    code = """
import sys
from pathlib import Path
from pipeline import durable
with durable.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(lock)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield
    process.stdin.close()
    process.stdout.close()
    assert process.wait(20) == 0
