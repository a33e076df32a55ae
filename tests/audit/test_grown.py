"""A cache of several generations is verified and mended whole."""

from pathlib import Path

import pytest

from pipeline.audit.repair import repair_cache
from pipeline.audit.verify import verify_cache
from pipeline.embed import build_cache
from pipeline.recipe import load_recipe
from pipeline.shards import find_shards
from tests.audit.damage import chunk, flip
from tests.trees import cache_digests


@pytest.fixture
def grown(cache_copy: Path, shards_dir: Path, recipe_file: Path) -> Path:
    """A third view beside the two of the first generation."""
    recipe = load_recipe(str(recipe_file), ("views=3",))
    shards = find_shards([str(shards_dir)])
    build_cache(cache_copy, shards, recipe.cache_options(), recipe=recipe.resolved(), extend=True)
    return cache_copy


def test_every_generation_is_verified(grown: Path) -> None:
    verdict = verify_cache(grown, full=True)
    assert (verdict.problems, verdict.generation, verdict.units) == ([], 1, 7)
    flip(chunk(grown, "train-000000.mild.v2-2", "targets"))
    (grown / "index" / "000000" / "seal.json").write_text("{")
    found = {(p.place, p.view) for p in verify_cache(grown, full=True).problems}
    assert found == {("units/train-000000.mild.v2-2", 2), ("index/000000/seal.json", None)}


def test_every_generation_is_mended_and_sealed(grown: Path, shards_dir: Path) -> None:
    before = cache_digests(grown)
    flip(chunk(grown, "train-000000.mild.v0-1", "targets", 1))
    flip(chunk(grown, "train-000001.mild.v2-2", "targets"))
    flip(grown / "index" / "000000" / "train.label.npy")
    (grown / "index" / "000001" / "test.valid.npy").unlink()
    report = repair_cache(grown, find_shards([str(shards_dir)]))
    assert set(report.units) == {"train-000000.mild.v0-1", "train-000001.mild.v2-2"}
    assert cache_digests(grown) == before
    assert verify_cache(grown, full=True).problems == []


def test_a_damaged_seal_of_an_older_generation_is_mended_alone(
    grown: Path, shards_dir: Path
) -> None:
    before = cache_digests(grown)
    flip(grown / "index" / "000000" / "train.label.npy")
    assert repair_cache(grown, find_shards([str(shards_dir)])).units == []
    assert cache_digests(grown) == before
