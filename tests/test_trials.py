"""What a sweep could not train, score or compare is refused before anything is trained."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.cache.reader import TargetCache
from pipeline.errors import BeamclipError, CacheError, CacheMismatchError, RunError, StudentError
from pipeline.grid import load_sweep, points_of
from pipeline.recipe import load_recipe
from pipeline.shards import find_shards
from pipeline.trials import Trial, check_trials, sharing, trials_of
from tests.conftest import Invoke
from tests.runs import MODEL, train
from tests.sweeps import OTHER, write_sweep

SAMPLE = "shapes-context.2of3-seed5"


@pytest.fixture
def trials(tmp_path: Path, recipe_file: Path) -> Any:
    """Return the trials of the tests' sweep with some keys changed."""

    def made(**changed: Any) -> list[Trial]:
        loaded = load_sweep(str(write_sweep(tmp_path / "own.yaml", recipe_file, **changed)))
        return trials_of(points_of(loaded), loaded.seeds, tmp_path / "out")

    return made


@pytest.fixture
def check(shards_dir: Path) -> Any:
    """Check trials against a cache."""

    def checked(trials: list[Trial], cache: Path) -> TargetCache:
        return check_trials(trials, [cache], find_shards([str(shards_dir)]), torch.device("cpu"))

    return checked


def test_all_points_under_the_first_seed_come_first(trials: Any) -> None:
    found = trials(seeds=[3, 1])
    assert [t.name for t in found] == ["ISM/seed-3", "CSM/seed-3", "ISM/seed-1", "CSM/seed-1"]
    assert [t.recipe.training.seed for t in found] == [3, 3, 1, 1]


def test_only_what_differs_in_the_student_alone_shares_a_stream(trials: Any) -> None:
    found = sharing(
        trials(
            set={"training.epochs": 1},
            fields={"student.model": [MODEL, OTHER], "views": [1, 2]},
        )
    )
    assert len(found) == 8  # two rows, two numbers of views, two seeds
    for group in found:
        assert [t.recipe.student.model for t in group] == [MODEL, OTHER]
        assert len({(t.recipe.views, t.seed, *t.recipe.losses) for t in group}) == 1


def test_fields_that_the_cache_covers_pass(trials: Any, check: Any, sealed_cache: Path) -> None:
    found = trials(
        fields={
            "views": [1, 2],
            "prompts.anchors": ["context", "plain", "shapes-plain"],
            "student.input_px": [32, None, 48],
        }
    )
    assert check(found, sealed_cache).path == sealed_cache


class TestRefusals:
    def test_of_more_views_than_are_cached(
        self, trials: Any, check: Any, sealed_cache: Path
    ) -> None:
        with pytest.raises(CacheMismatchError, match="views: cache has 2, asked for 3"):
            check(trials(fields={"views": [1, 3]}), sealed_cache)

    def test_of_a_student_that_no_library_has(
        self, trials: Any, check: Any, sealed_cache: Path
    ) -> None:
        found = trials(set={"training.epochs": 1}, fields={"student.model": [MODEL, "resnt18"]})
        with pytest.raises(StudentError, match="no student 'resnt18'"):
            check(found, sealed_cache)

    def test_of_a_precision_that_the_device_lacks(
        self, trials: Any, check: Any, sealed_cache: Path
    ) -> None:
        with pytest.raises(BeamclipError, match="fp16 wants a CUDA device"):
            check(trials(fields={"training.precision": ["fp32", "fp16"]}), sealed_cache)

    def test_of_a_set_that_nothing_would_add(
        self, trials: Any, check: Any, sealed_cache: Path
    ) -> None:
        with pytest.raises(BeamclipError, match=r"no set 'contxt': did you mean 'context'"):
            check(trials(fields={"prompts.anchors": ["contxt"]}), sealed_cache)

    def test_of_random_prompts_comes_with_the_commands_that_add_them(
        self,
        beamclip: Invoke,
        trials: Any,
        check: Any,
        sealed_cache: Path,
        tmp_path: Path,
        recipe_file: Path,
    ) -> None:
        cache = Path(shutil.copytree(sealed_cache, tmp_path / "a cache"))
        other = SAMPLE.replace("2of3", "1of3")
        found = trials(fields={"prompts.anchors": ["context", SAMPLE, other]})
        with pytest.raises(CacheError) as caught:
            check(found, cache)
        commands = [line for line in str(caught.value).splitlines() if "anchors add" in line]
        assert len(commands) == 2
        for command in commands:
            done = beamclip(*shlex.split(command)[1:])
            assert done.code == 0, done.err
        check(found, cache)

    def test_of_a_set_of_the_prompt_file_names_the_command_too(
        self, beamclip: Invoke, trials: Any, check: Any, cache_copy: Path
    ) -> None:
        shutil.rmtree(cache_copy / "anchors" / "shapes-context")
        found = trials()
        with pytest.raises(CacheError, match="anchors add") as caught:
            check(found, cache_copy)
        command = str(caught.value).splitlines()[-1]
        assert beamclip(*shlex.split(command)[1:]).code == 0
        check(found, cache_copy)

    def test_of_a_run_that_was_begun_with_another_cache(
        self,
        trials: Any,
        check: Any,
        sealed_cache: Path,
        captioned_cache: Path,
        shards_dir: Path,
    ) -> None:
        found = trials()
        train(found[0].recipe, sealed_cache, shards_dir, found[0].run.path)
        check(found, sealed_cache)
        with pytest.raises(RunError, match="begun with another cache"):
            check(found, captioned_cache)

    def test_of_runs_of_several_generations(
        self, trials: Any, check: Any, grown_cache: Path, more_shards: Path, shards_dir: Path
    ) -> None:
        found = trials()
        for trial, shards, generation in zip(
            found, (shards_dir, more_shards), (0, 1), strict=False
        ):
            train(trial.recipe, grown_cache, shards, trial.run.path, generation=generation)
        with pytest.raises(RunError, match=re.escape("several generations of the cache")):
            check(found, grown_cache)


def test_a_cache_that_grew_is_read_as_the_runs_were_begun(
    trials: Any, check: Any, sealed_cache: Path, grown_cache: Path, shards_dir: Path
) -> None:
    found = trials()
    assert check(found, grown_cache).manifest["generation"] == 1
    train(found[0].recipe, sealed_cache, shards_dir, found[0].run.path)
    assert check(found, grown_cache).manifest["generation"] == 0


def test_the_recipe_of_a_trial_is_the_points_under_its_seed(trials: Any, recipe_file: Path) -> None:
    base = load_recipe(str(recipe_file)).resolved()
    resolved = trials(set={"training.epochs": 1})[0].recipe.resolved()
    assert resolved == {
        **base,
        "losses": {"ism": {"weight": 10}},
        "training": {**base["training"], "epochs": 1, "seed": 0},
    }
