"""Two caches over the same shards teach one student by the mean of what the teachers say."""

from pathlib import Path

import pytest
import torch

from pipeline import stage_two
from pipeline.batches import TrainingBatches
from pipeline.cache.reader import TargetCache
from pipeline.errors import CacheMismatchError
from pipeline.recipe import Recipe
from pipeline.rundir import RunDir
from pipeline.shards import find_shards
from tests.inputs import build, make_teacher
from tests.runs import small_recipe


@pytest.fixture(scope="session")
def second(
    tmp_path_factory: pytest.TempPathFactory, shards_dir: Path, recipe_file: Path
) -> tuple[Path, Path]:
    """Another teacher, of another dimension, and its cache of the same shards."""
    folder = tmp_path_factory.mktemp("second")
    teacher = make_teacher(folder / "teacher", seed=7)
    cache = build(folder / "cache", shards_dir, recipe_file, f"teacher.model=local-dir:{teacher}")
    return teacher, cache


def recipe_of(recipe_file: Path, *teachers: Path) -> Recipe:
    further = ", ".join(f'{{model: "local-dir:{t}", batch_size: 16}}' for t in teachers)
    return small_recipe(recipe_file, f"further_teachers=[{further}]")


def train(recipe: Recipe, caches: list[Path], shards: Path, run: Path, *, resume: bool) -> None:
    found = find_shards([str(shards)])
    stage_two.train(recipe, caches, found, run, resume=resume, device="cpu")


def test_both_are_heard(
    sealed_cache: Path,
    second: tuple[Path, Path],
    shards_dir: Path,
    recipe_file: Path,
    tmp_path: Path,
) -> None:
    teacher, cache = second
    recipe = recipe_of(recipe_file, teacher)
    train(recipe, [sealed_cache, cache], shards_dir, tmp_path / "two", resume=False)
    train(small_recipe(recipe_file), [sealed_cache], shards_dir, tmp_path / "one", resume=False)
    one, two = (RunDir(tmp_path / name).load_weights("student") for name in ("one", "two"))
    assert any(not torch.equal(value, two[name]) for name, value in one.items())
    assert "further_1" in RunDir(tmp_path / "two").read_origin()["cache"]


def test_batches_bring_the_targets_of_both(
    sealed_cache: Path, second: tuple[Path, Path], shards_dir: Path
) -> None:
    one, two = TargetCache.open(sealed_cache), TargetCache.open(second[1])
    source = TrainingBatches(
        one,
        find_shards([str(shards_dir)]),
        sizes=(32,),
        batch_size=8,
        num_views=2,
        seed=0,
        others=[two],
    )
    for step, batch in enumerate(source.starting_at(0, 6)):
        (theirs_BD,) = batch.others
        expected = two.targets(batch.rows_B.numpy(), step // 3)
        assert torch.equal(theirs_BD, torch.from_numpy(expected))


def test_the_run_goes_on_with_both_or_not_at_all(
    sealed_cache: Path,
    second: tuple[Path, Path],
    shards_dir: Path,
    recipe_file: Path,
    tmp_path: Path,
) -> None:
    recipe = recipe_of(recipe_file, second[0])
    train(recipe, [sealed_cache, second[1]], shards_dir, tmp_path / "run", resume=True)
    train(recipe, [sealed_cache, second[1]], shards_dir, tmp_path / "run", resume=True)
    with pytest.raises(CacheMismatchError, match="names 1 further teachers, 0 further caches"):
        train(recipe, [sealed_cache], shards_dir, tmp_path / "run", resume=True)


def test_the_same_cache_twice_is_not_the_second_teachers(
    sealed_cache: Path,
    second: tuple[Path, Path],
    shards_dir: Path,
    recipe_file: Path,
    tmp_path: Path,
) -> None:
    recipe = small_recipe(recipe_file, 'further_teachers=[{model: "ViT-B-32", pretrained: openai}]')
    with pytest.raises(CacheMismatchError, match="another teacher than the recipe's"):
        train(recipe, [sealed_cache, second[1]], shards_dir, tmp_path / "run", resume=False)
