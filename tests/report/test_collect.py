"""Runs are read as their folders tell them, whole, unfinished or damaged."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.errors import RunError
from pipeline.report.collect import RunFacts, collect, grouped, parameters
from pipeline.rundir import RunDir


def test_runs_of_a_sweep_are_called_as_it_calls_them(
    tmp_path: Path, two_runs: tuple[Path, Path]
) -> None:
    paths = [tmp_path / "sweep" / point / "seed-0" for point in ("ISM_model=x", "CSM_model=x")]
    for path, name in zip(paths, ("ISM, x, seed 0", "CSM, x, seed 0"), strict=True):
        shutil.copytree(two_runs[0], path)
        path.with_name("seed-0.json").write_text(json.dumps({"name": name}), encoding="utf-8")
    assert [run.name for run in collect(paths)] == ["ISM, x, seed 0", "CSM, x, seed 0"]
    both = collect([*paths, two_runs[1]])  # one has none: folders tell them apart
    assert [run.name for run in both][:2] == ["ISM_model=x/seed-0", "CSM_model=x/seed-0"]
    paths[1].with_name("seed-0.json").write_text("no JSON", encoding="utf-8")
    assert collect(paths)[0].name == "ISM_model=x/seed-0"


def test_names_are_folders_and_grow_only_until_no_two_are_alike(
    tmp_path: Path, two_runs: tuple[Path, Path]
) -> None:
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    for path in paths:
        shutil.copytree(two_runs[0], path)
    assert [run.name for run in collect(paths)] == ["a/run", "b/run"]
    assert [run.name for run in collect([paths[0], two_runs[0]])] == ["run", "whole"]


def test_scores_and_epochs_are_those_of_the_files(facts: list[RunFacts]) -> None:
    assert [len(run.epochs) for run in facts] == [2, 3]
    assert facts[0].scores is not None
    value = facts[0].scores["student"]["zeroshot"]["top1"]
    assert facts[0].score("student", "zeroshot", "top1") == value
    assert facts[0].score("chance", "linear", "embedding_accuracy") is None
    assert (facts[0].weight("csm_ce"), facts[1].weight("csm_ce")) == (1, 0)


def test_damaged_scores_are_a_problem_in_words_and_the_rest_is_read(
    tmp_path: Path, two_runs: tuple[Path, Path]
) -> None:
    run = shutil.copytree(two_runs[0], tmp_path / "run")
    (run / "probe.json").write_text("{", encoding="utf-8")
    (run / "metrics.jsonl").write_text("not json\n", encoding="utf-8")
    (found,) = collect([run])
    assert (found.scores, found.epochs) == (None, ())
    assert [problem.split()[0] for problem in found.problems] == ["metrics.jsonl", "probe.json"]


def test_no_run_twice_and_no_folder_without_one(
    tmp_path: Path, two_runs: tuple[Path, Path]
) -> None:
    with pytest.raises(RunError, match="holds no run"):
        collect([tmp_path])
    with pytest.raises(RunError, match="given twice"):
        collect([two_runs[0], two_runs[0] / ".." / two_runs[0].name])
    with pytest.raises(RunError, match="no run was given"):
        collect([])


def test_only_runs_of_one_teacher_cache_and_zeroshot_set_are_compared(
    facts: list[RunFacts],
) -> None:
    assert grouped(facts) == [facts]
    moved = dataclasses.replace(facts[1], origin={**facts[1].origin, "cache_path": "/elsewhere"})
    assert grouped([facts[0], moved]) == [[facts[0]], [moved]]


def test_parameters_are_counted_as_torch_counts_them(facts: list[RunFacts]) -> None:
    tensors = RunDir(facts[0].path).load_weights("student").values()
    assert parameters(facts[0]) == sum(
        t.numel() for t in tensors if isinstance(t, torch.Tensor) and t.ndim
    )
    gone = dataclasses.replace(facts[0], path=Path("/nowhere"))
    assert parameters(gone) is None
