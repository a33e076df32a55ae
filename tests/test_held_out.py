"""A student in training is scored on rows that no step of it sees."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.batches import TrainingBatches
from pipeline.cache.reader import TargetCache
from pipeline.held_out import HeldOut, held_out_slice
from pipeline.rundir import RunDir
from pipeline.schedule import EVAL
from pipeline.shards import Shard, find_shards, write_shards
from pipeline.students import Student
from tests.inputs import build, labelled_samples
from tests.runs import small_recipe, train

CPU = torch.device("cpu")
NAMES = {"held_out_cosine", "held_out_agreement", "held_out_zeroshot", "held_out_knn"}


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> tuple[Path, Path]:
    """200 train samples in shards of 50, and their cache."""
    folder = tmp_path_factory.mktemp("many")
    write_shards(labelled_samples(200, seed=11), folder / "shards", "train", per_shard=50)
    write_shards(labelled_samples(6, seed=12), folder / "shards", "test", per_shard=50)
    return build(folder / "cache", folder / "shards", recipe_file, "views=1"), folder / "shards"


def choose(cache: TargetCache, shards: list[Shard], count: int) -> HeldOut | None:
    return held_out_slice(
        cache,
        shards,
        count,
        anchors=cache.anchors("shapes-context"),
        zeroshot=cache.anchors("shapes-plain"),
        device=CPU,
    )


class Echo(nn.Module):
    """A backbone that knows the target of every view it is shown."""

    def __init__(self, views: torch.Tensor, targets_ND: torch.Tensor) -> None:
        super().__init__()
        self.views, self.targets_ND = views, targets_ND
        self.register_buffer("sign", torch.ones(1))

    def forward(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        assert not self.training
        wanted = pixels_B3SS.round().to(torch.uint8)
        same_BN = (wanted[:, None] == self.views[None]).flatten(2).all(dim=2)
        return self.sign * self.targets_ND[same_BN.int().argmax(dim=1)]


def echo(cache: TargetCache, held_out: HeldOut) -> Student:
    """Return a student that answers every held-out view with its own target."""
    batches = list(held_out._batches(32))
    views = torch.cat([batch.views(CPU) for batch in batches])
    targets_ND = torch.cat([batch.target_BD for batch in batches])
    student = Student(Echo(views, targets_ND), cache.dim, cache.dim, (0.0,) * 3, (1 / 255,) * 3)
    nn.init.eye_(student.projection.weight)
    return student


class TestChoice:
    def test_takes_a_twentieth_of_train_at_most_and_no_step_sees_it(
        self, many: tuple[Path, Path]
    ) -> None:
        cache, shards = TargetCache.open(many[0]), find_shards([str(many[1])])
        held_out = choose(cache, shards, 1000)
        assert held_out is not None
        assert held_out.leave_out_N is not None
        held = set(np.flatnonzero(held_out.leave_out_N).tolist())
        assert len(held) == 10
        source = TrainingBatches(
            cache,
            shards,
            sizes=(32,),
            batch_size=10,
            num_views=1,
            seed=3,
            leave_out_N=held_out.leave_out_N,
        )
        assert source.steps_per_epoch == 19
        seen = {row for b in source.starting_at(0, 19) for row in b.rows_B.tolist()}
        assert seen == set(range(200)) - held
        scored = {row for batch in held_out._batches(32) for row in batch.rows_B.tolist()}
        assert scored == held

    def test_takes_fewer_if_fewer_are_asked_for_and_none_for_0(
        self, many: tuple[Path, Path]
    ) -> None:
        cache, shards = TargetCache.open(many[0]), find_shards([str(many[1])])
        few = choose(cache, shards, 4)
        assert few is not None
        assert few.leave_out_N is not None
        assert few.leave_out_N.sum() == 4
        assert choose(cache, shards, 0) is None

    def test_takes_none_of_a_handful_of_rows(self, cache_copy: Path, shards_dir: Path) -> None:
        cache = TargetCache.open(cache_copy)
        held_out = choose(cache, find_shards([str(shards_dir)]), 1000)
        assert held_out is not None  # 24 rows: one
        assert held_out.leave_out_N is not None
        assert held_out.leave_out_N.sum() == 1

    def test_prefers_the_val_split_and_then_leaves_train_whole(
        self, grown_cache: Path, more_shards: Path, shards_dir: Path
    ) -> None:
        cache = TargetCache.open(grown_cache)
        held_out = choose(cache, find_shards([str(more_shards)]), 1000)
        assert held_out is not None
        assert held_out.leave_out_N is None
        val = TargetCache.open(grown_cache, "val", EVAL)
        assert sum(len(batch.rows_B) for batch in held_out._batches(32)) == len(val) == 5

    def test_goes_without_a_val_split_whose_shards_are_not_given(
        self, grown_cache: Path, more_shards: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        cache = TargetCache.open(grown_cache)
        shards = [s for s in find_shards([str(more_shards)]) if s.split != "val"]
        held_out = choose(cache, shards, 1000)
        assert held_out is not None
        assert held_out.leave_out_N is not None
        assert "none of its shards is given" in caplog.text


class TestScores:
    def test_of_a_student_that_says_what_the_teacher_says_are_the_teachers(
        self, many: tuple[Path, Path]
    ) -> None:
        cache, shards = TargetCache.open(many[0]), find_shards([str(many[1])])
        held_out = choose(cache, shards, 1000)
        assert held_out is not None
        student = echo(cache, held_out).train()
        found = held_out.scores(student, student.state_dict(), 32)
        assert found.keys() == NAMES
        assert found["held_out_cosine"] == pytest.approx(1, abs=1e-6)
        assert found["held_out_agreement"] == 1
        assert student.training

    def test_are_of_the_weights_that_are_given_not_of_the_students_own(
        self, many: tuple[Path, Path]
    ) -> None:
        cache, shards = TargetCache.open(many[0]), find_shards([str(many[1])])
        held_out = choose(cache, shards, 1000)
        assert held_out is not None
        student = echo(cache, held_out)
        other = student.state_dict() | {"backbone.sign": -torch.ones(1)}
        found = held_out.scores(student, other, 32)
        assert found["held_out_cosine"] == pytest.approx(-1, abs=1e-6)
        assert found["held_out_agreement"] < 1

    def test_stand_in_every_line_of_a_run_and_change_nothing_else(
        self, many: tuple[Path, Path], recipe_file: Path, tmp_path: Path
    ) -> None:
        recipe = small_recipe(
            recipe_file, "views=1", "training.held_out_rows=10", "training.batch_size=19"
        )
        train(recipe, *many, tmp_path / "run")
        for line in lines(tmp_path / "run"):
            assert line.keys() > NAMES
            assert all(-1 <= line[name] <= 1 for name in NAMES)


def lines(run: Path) -> list[dict[str, Any]]:
    text = (RunDir(run).path / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
