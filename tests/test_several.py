"""Several students share one stream of batches, and each ends as if it were trained alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline import stage_two
from pipeline.errors import RunError
from pipeline.recipe import Recipe
from pipeline.rundir import RunDir
from pipeline.shards import find_shards
from tests.conftest import Invoke
from tests.runs import MODEL, small_recipe

OTHER, OTHER_PX = "test_efficientnet", 48


def student_of(recipe: Recipe, model: str, px: int | None = None) -> Recipe:
    return replace(recipe, student=replace(recipe.student, model=model, input_px=px))


def train(cache: Path, shards: Path, runs: dict[Path, Recipe], *, resume: bool = False) -> None:
    recipe = next(iter(runs.values()))
    found = find_shards([str(shards)])
    stage_two.train(recipe, [cache], found, runs, resume=resume, device="cpu")


def assert_same(one: Path, other: Path) -> None:
    for name in ("student", "student_raw"):
        weights, others = (RunDir(path).load_weights(name) for path in (one, other))
        assert weights.keys() == others.keys()
        assert all(torch.equal(value, others[key]) for key, value in weights.items())


def test_each_is_trained_as_if_alone_at_its_own_size(
    sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    recipe = small_recipe(recipe_file)
    one, other = student_of(recipe, MODEL), student_of(recipe, OTHER, OTHER_PX)
    train(sealed_cache, shards_dir, {tmp_path / "a": one, tmp_path / "b": other})
    train(sealed_cache, shards_dir, {tmp_path / "alone-a": one})
    train(sealed_cache, shards_dir, {tmp_path / "alone-b": other})
    assert_same(tmp_path / "a", tmp_path / "alone-a")
    assert_same(tmp_path / "b", tmp_path / "alone-b")


def test_those_that_are_behind_catch_up_and_those_that_are_done_stay(
    sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    recipe = small_recipe(recipe_file)
    one, other = student_of(recipe, MODEL), student_of(recipe, OTHER, OTHER_PX)
    train(sealed_cache, shards_dir, {tmp_path / "alone": other})
    train(sealed_cache, shards_dir, {tmp_path / "a": one})
    before = (tmp_path / "a" / "student.safetensors").stat()
    runs = {tmp_path / "a": one, tmp_path / "b": other}
    train(sealed_cache, shards_dir, runs, resume=True)
    assert (tmp_path / "a" / "student.safetensors").stat() == before
    assert_same(tmp_path / "b", tmp_path / "alone")


def test_a_folder_in_use_stops_all_before_any_is_trained(
    sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    recipe = small_recipe(recipe_file)
    train(sealed_cache, shards_dir, {tmp_path / "b": student_of(recipe, OTHER)})
    runs = {tmp_path / "a": recipe, tmp_path / "b": student_of(recipe, OTHER)}
    with pytest.raises(RunError, match="already holds a run"):
        train(sealed_cache, shards_dir, runs)
    assert not RunDir(tmp_path / "a").is_finished()


class TestCommand:
    def test_trains_each_model_into_a_folder_of_its_name(
        self,
        beamclip: Invoke,
        sealed_cache: Path,
        shards_dir: Path,
        recipe_file: Path,
        tmp_path: Path,
    ) -> None:
        shared = ["--cache", sealed_cache, "--shards", shards_dir, "--recipe", recipe_file]
        models = f"{MODEL},{OTHER}@{OTHER_PX}"
        done = beamclip(
            "train-student", *shared, "--model", models, "--run", tmp_path / "x-{model}"
        )
        assert done.code == 0, done.err
        for name, px in ((MODEL, 32), (f"{OTHER}@{OTHER_PX}", OTHER_PX)):
            run = RunDir(tmp_path / f"x-{name}")
            assert run.is_finished()
            assert run.read_origin()["input_px"] == px
            assert f"trained in {run.path}" in done.out
            assert beamclip("probe", "--run", run.path).code == 0

    @pytest.mark.parametrize(
        ("models", "code", "message"),
        [
            (f"{MODEL},{MODEL}", 1, "names test_resnet twice"),
            (f"{MODEL}@big", 2, "expected NAME or NAME@PX"),
            ("test_resnet,resnt18", 1, "no student 'resnt18'"),
        ],
    )
    def test_refuses_what_names_no_set_of_students(
        self,
        beamclip: Invoke,
        sealed_cache: Path,
        shards_dir: Path,
        recipe_file: Path,
        tmp_path: Path,
        models: str,
        code: int,
        message: str,
    ) -> None:
        shared = ["--cache", sealed_cache, "--shards", shards_dir, "--recipe", recipe_file]
        done = beamclip("train-student", *shared, "--model", models, "--run", tmp_path / "runs")
        assert done.code == code
        assert message in done.err
