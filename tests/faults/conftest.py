"""Inputs on which stage one is on its way for seconds: long enough to be stopped."""

from pathlib import Path

import pytest

from tests.inputs import build, labelled_samples

NUM_SHARDS, NUM_UNITS = 20, 40


@pytest.fixture(scope="session")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty train shards of three samples."""
    from pipeline.shards import write_shards

    folder = tmp_path_factory.mktemp("many-shards")
    write_shards(labelled_samples(3 * NUM_SHARDS, seed=3), folder, "train", per_shard=3)
    return folder


@pytest.fixture(scope="session")
def many_units(
    tmp_path_factory: pytest.TempPathFactory, many_shards: Path, recipe_file: Path
) -> Path:
    """Their cache, made without a fault."""
    return build(tmp_path_factory.mktemp("many-units") / "cache", many_shards, recipe_file)
