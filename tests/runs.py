"""Trains small students on the tests' real inputs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline import runtime, stage_two
from pipeline.cache.reader import SCRATCH_VARIABLE
from pipeline.recipe import Recipe, load_recipe
from pipeline.shards import find_shards

MODEL = "test_resnet"  # timm's own for tests: half a million parameters


def small_recipe(file: Path, *overrides: str) -> Recipe:
    """Load the tests' recipe with a very small student."""
    return load_recipe(str(file), (f"student.model={MODEL}", *overrides))


def train(
    recipe: Recipe, cache: Path, shards: Path, run: Path, *, resume: bool = False, workers: int = 0
) -> dict[str, Any]:
    """Run stage two in this process."""
    found = find_shards([str(shards)])
    return stage_two.train(recipe, cache, found, run, resume=resume, workers=workers, device="cpu")


def probe(run: Path, cache: Path | None = None) -> Any:
    """Score a run in this process."""
    return stage_two.probe(run, cache, (), workers=0, device="cpu")


@contextmanager
def alone(scratch: Path) -> Iterator[None]:
    """Give a fixture that outlives one test what every test has: own scratch, one thread."""
    with pytest.MonkeyPatch.context() as patch, runtime.torch_threads(1):
        patch.setenv(SCRATCH_VARIABLE, str(scratch))
        yield
