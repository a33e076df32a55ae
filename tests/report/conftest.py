"""Two small runs of one cache, trained and scored for real."""

from pathlib import Path

import pytest

from pipeline.report.collect import RunFacts, collect
from pipeline.report.seen import Seen, look
from tests.runs import alone, probe, small_recipe, train


@pytest.fixture(scope="session")
def two_runs(
    tmp_path_factory: pytest.TempPathFactory,
    sealed_cache: Path,
    shards_dir: Path,
    recipe_file: Path,
) -> tuple[Path, Path]:
    """A run with all losses, and one of an odd name with ISM alone; never change them."""
    folder = tmp_path_factory.mktemp("report")
    whole, odd = folder / "whole", folder / 'odd <script>"`x`"& {{ 7*7 }}'
    with alone(folder / "scratch"):
        train(small_recipe(recipe_file), sealed_cache, shards_dir, whole)
        other = small_recipe(recipe_file, "training.epochs=3", "losses={ism: {weight: 10}}")
        train(other, sealed_cache, shards_dir, odd)
        for path in (whole, odd):
            probe(path)
    return whole, odd


@pytest.fixture
def facts(two_runs: tuple[Path, Path]) -> list[RunFacts]:
    """What the folders of the two runs tell."""
    return collect(two_runs)


@pytest.fixture(scope="session")
def seen(tmp_path_factory: pytest.TempPathFactory, two_runs: tuple[Path, Path]) -> list[Seen]:
    """What the two students see of the test images."""
    with alone(tmp_path_factory.mktemp("seen")):
        found, reasons = look(collect(two_runs), device="cpu", workers=0)
    assert not reasons
    return found
