"""What weakens a score is said, and nothing is said where nothing does."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from pipeline.report.caveats import caveats, data_caveats
from pipeline.report.collect import RunFacts, collect
from pipeline.shards import write_shards
from tests.inputs import build, labelled_samples
from tests.runs import small_recipe, train


def scored(run: RunFacts, **linear: float) -> RunFacts:
    scores: dict[str, Any] = {
        name: {"linear": {"accuracy": 0.9, "converged": 1.0, "iterations": 12.0}}
        for name in ("teacher", "student", "student_raw")
    }
    scores["student"] = {
        "linear": {**scores["student"]["linear"], **linear},
        "zeroshot": {"top1": 0.5},
    }
    scores["chance"] = {"zeroshot": {"top1": 0.4}}
    return dataclasses.replace(run, scores=scores)


def test_a_run_without_faults_has_no_caveat(facts: list[RunFacts]) -> None:
    assert caveats(scored(facts[0])) == []
    assert data_caveats(facts) == []


def test_a_fit_that_did_not_converge_is_named(facts: list[RunFacts]) -> None:
    (found,) = caveats(scored(facts[0], converged=0.0, iterations=1000.0))
    assert "did not converge in 1000 steps (student)" in found


def test_a_run_that_waits_for_a_command_says_which(
    tmp_path: Path, two_runs: tuple[Path, Path]
) -> None:
    run = shutil.copytree(two_runs[0], tmp_path / "a run")
    (run / "probe.json").unlink()
    (unscored,) = caveats(collect([run])[0])
    assert f"`beamclip probe --run '{run}'`" in unscored
    (run / "student.safetensors").unlink()
    (unfinished,) = caveats(collect([run])[0])
    assert "train-student --resume" in unfinished


def test_chance_and_live_targets_are_said(facts: list[RunFacts]) -> None:
    run = scored(facts[0])
    poor = {**(run.scores or {}), "chance": {"zeroshot": {"top1": 0.5}}}
    live = {**run.origin, "cache": {**run.origin["cache"], "live_targets": True}}
    found = caveats(dataclasses.replace(run, scores=poor, origin=live))
    assert ["no better than chance" in found[0], "live teacher" in found[1]] == [True, True]


def test_uneven_classes_and_shared_images_are_counted(tmp_path: Path, recipe_file: Path) -> None:
    samples = labelled_samples(24, seed=1)
    rare = [pair for pair in samples if pair[1]["cls"] == b"0"] + samples[1:3]
    shards = tmp_path / "shards"
    write_shards(rare, shards, "train", per_shard=20)
    write_shards([*samples[:1], *labelled_samples(5, seed=9)[1:]], shards, "test", per_shard=20)
    cache = build(tmp_path / "cache", shards, recipe_file)
    train(small_recipe(recipe_file, "training.epochs=1"), cache, shards, tmp_path / "run")
    shared, uneven = data_caveats(collect([tmp_path / "run"]))
    assert shared.startswith("1 test images are train images too")
    assert "8 images of the commonest, 1 of the rarest" in uneven
