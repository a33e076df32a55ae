"""A sweep ends in the same table however often it is killed, and one bad point costs no other."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import probing, sweep
from pipeline.errors import RunError
from pipeline.grid import load_sweep, points_of
from pipeline.recipe import load_recipe
from pipeline.rundir import RunDir
from pipeline.shards import find_shards
from pipeline.sweep_table import text_table
from tests.conftest import Invoke
from tests.runs import MODEL, alone, held_elsewhere, train
from tests.sweeps import OTHER, ROWS, read, run_file, stamps, write_sweep
from tests.test_several import assert_same

LEFT = "*/seed-*/student.safetensors"
SCORED = "*/seed-*/probe.json"


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory,
    sealed_cache: Path,
    shards_dir: Path,
    recipe_file: Path,
) -> Path:
    """A finished sweep of two rows, two students and two seeds; read it, never change it."""
    folder = tmp_path_factory.mktemp("sweep")
    with alone(folder / "scratch"):
        run_file(sweep_file(folder, recipe_file), sealed_cache, shards_dir, folder / "out")
    return folder / "out"


def sweep_file(folder: Path, recipe_file: Path, **changed: Any) -> Path:
    fields = {
        "set": {"training.epochs": 1},
        "fields": {"student.model": [MODEL, OTHER]},
    }
    return write_sweep(folder / "shapes-sweep.yaml", recipe_file, **{**fields, **changed})


@pytest.fixture
def copy(tmp_path: Path, done: Path) -> Path:
    """A copy of the finished sweep that a test may go on with."""
    return Path(shutil.copytree(done, tmp_path / "out"))


class TestRun:
    def test_every_run_is_as_if_trained_alone(
        self, done: Path, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        for model in (MODEL, OTHER):
            recipe = load_recipe(str(recipe_file), ("training.epochs=1", f"student.model={model}"))
            recipe = replace(recipe, losses={"csm_ce": {"weight": 1}})
            recipe = replace(recipe, training=replace(recipe.training, seed=1))
            train(recipe, sealed_cache, shards_dir, tmp_path / model)
            assert_same(done / f"CSM_student.model={model}" / "seed-1", tmp_path / model)

    def test_scores_are_the_probes_own_and_spread_over_seeds(
        self, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        # Its objective differs from run to run, however little is learned.
        file = write_sweep(tmp_path / "s.yaml", recipe_file, rows=ROWS[:1], probes=["linear"])
        (point,) = run_file(file, sealed_cache, shards_dir, tmp_path / "out")["points"]
        each = [run["scores"]["student"]["linear"]["objective"] for run in point["runs"]]
        assert len(set(each)) == 2
        assert point["scores"]["student"]["linear"]["objective"] == {
            "mean": pytest.approx(np.mean(each)),
            "sd": pytest.approx(np.std(each, ddof=1)),
            "min": min(each),
            "max": max(each),
            "n": 2,
        }
        run = tmp_path / "out" / point["runs"][1]["folder"]
        assert point["runs"][1]["scores"] == probing.probe(
            run, sealed_cache, (), probes=["linear"], workers=0, device="cpu"
        )

    def test_results_say_what_they_come_from(self, done: Path, sealed_cache: Path) -> None:
        result = read(done)
        run = RunDir(done / result["points"][0]["runs"][0]["folder"])
        assert result["cache"]["path"] == str(sealed_cache)
        assert result["cache"]["digest"] == run.read_origin()["cache"]["digest"]
        assert result["made_with"]["versions"]["torch"]
        assert result["points"][0]["runs"][0]["made_with"] == run.read_origin()["made_with"]
        own = result["points"][0]["recipe"]
        own["training"]["seed"] = run.read_recipe()["training"]["seed"]
        assert own == run.read_recipe()

    def test_results_can_be_watched(
        self, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        out, seen = tmp_path / "out", []

        def look(line: str) -> None:
            states = [r["state"] for p in read(out)["points"] for r in p["runs"]] if seen else []
            seen.append((line, states.count("scored")))

        loaded = load_sweep(str(write_sweep(tmp_path / "s.yaml", recipe_file, seeds=[0])))
        inputs = sweep.Inputs([sealed_cache], find_shards([str(shards_dir)]), (), "cpu", 0, look)
        sweep.run_sweep(loaded, points_of(loaded), inputs, out)
        assert seen == [("1/2 ISM/seed-0: scored", 0), ("2/2 CSM/seed-0: scored", 1)]


class TestAgain:
    def test_trains_and_scores_nothing(
        self, copy: Path, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        before, result = (stamps(copy, LEFT), stamps(copy, SCORED)), read(copy)
        again = run_file(sweep_file(tmp_path, recipe_file), sealed_cache, shards_dir, copy)
        assert (stamps(copy, LEFT), stamps(copy, SCORED)) == before
        assert again == result == read(copy)

    def test_other_probes_are_run_without_training(
        self, copy: Path, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        before = stamps(copy, LEFT)
        file = sweep_file(tmp_path, recipe_file, probes=["linear"], seeds=[1], rows=ROWS[:1])
        result = run_file(file, sealed_cache, shards_dir, copy)
        assert stamps(copy, LEFT) == before
        assert [set(p["scores"]["student"]) for p in result["points"]] == [{"linear"}] * 2
        assert "linear accuracy" in text_table(result)

    def test_a_further_seed_and_row_are_added_to_what_is_there(
        self, copy: Path, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        before = stamps(copy, LEFT)
        rows = [*ROWS, {"label": "both", "set": {"losses": {"ism": {"weight": 10}, "csm_ce": {}}}}]
        file = sweep_file(
            tmp_path, recipe_file, rows=rows, seeds=[1, 2], fields={"student.model": [MODEL]}
        )
        result = run_file(file, sealed_cache, shards_dir, copy)
        after = stamps(copy, LEFT)
        assert before.items() < after.items()
        assert len(after) == len(before) + 4
        assert [[r["state"] for r in p["runs"]] for p in result["points"]] == [["scored"] * 2] * 3

    def test_a_run_whose_folder_is_gone_is_trained_anew(
        self, copy: Path, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        result = read(copy)
        shutil.rmtree(copy / result["points"][0]["runs"][0]["folder"])
        again = run_file(sweep_file(tmp_path, recipe_file), sealed_cache, shards_dir, copy)
        assert again == result

    def test_scores_of_other_weights_do_not_count(
        self, copy: Path, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        first, second = read(copy)["points"][0]["runs"]
        weights = "student.safetensors"
        shutil.copy(copy / second["folder"] / weights, copy / first["folder"] / weights)
        run_file(sweep_file(tmp_path, recipe_file), sealed_cache, shards_dir, copy)
        found = read(copy)["points"][0]["runs"]
        assert found[0]["weights"] == found[1]["weights"] == second["weights"]
        assert found[0]["scores"]["student"] == second["scores"]["student"]

    def test_a_run_of_another_recipe_is_refused_before_anything_is_trained(
        self, copy: Path, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        shutil.rmtree(copy / f"ISM_student.model={MODEL}")
        file = sweep_file(tmp_path, recipe_file, set={"training.epochs": 2})
        with pytest.raises(RunError, match=r"training\.epochs: run has 1, asked for 2"):
            run_file(file, sealed_cache, shards_dir, copy)
        assert not (copy / f"ISM_student.model={MODEL}").exists()

    def test_a_sweep_that_is_being_worked_on_is_refused(
        self, copy: Path, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        with held_elsewhere(copy / ".lock"), pytest.raises(RunError, match="another process"):
            run_file(sweep_file(tmp_path, recipe_file), sealed_cache, shards_dir, copy)

    def test_several_ranks_are_refused(
        self,
        monkeypatch: pytest.MonkeyPatch,
        sealed_cache: Path,
        shards_dir: Path,
        recipe_file: Path,
        tmp_path: Path,
    ) -> None:
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(RunError, match="without torchrun"):
            run_file(sweep_file(tmp_path, recipe_file), sealed_cache, shards_dir, tmp_path / "out")


@pytest.mark.parametrize("fault", ["in-checkpoint:3", "before-record:2"])
def test_killed_and_begun_again_it_ends_in_the_same_table(
    sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path, copy: Path, fault: str
) -> None:
    file, out = sweep_file(tmp_path, recipe_file, seeds=[0]), tmp_path / "killed"
    unbroken = run_file(file, sealed_cache, shards_dir, copy)
    command = [sys.executable, "-m", "pipeline.cli", "sweep", str(file), "--device", "cpu"]
    command += ["--cache", str(sealed_cache), "--shards", str(shards_dir), "--out", str(out)]
    killed = subprocess.run(
        command,
        env=os.environ | {"BEAMCLIP_FAULT_POINT": fault, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(stamps(out, LEFT)) == 2  # of four
    result = run_file(file, sealed_cache, shards_dir, out)
    assert text_table(result) == text_table(unbroken)
    for point, other in zip(result["points"], unbroken["points"], strict=True):
        (run,), (own,) = point["runs"], other["runs"]
        assert (run["scores"], run["loss"]) == (own["scores"], own["loss"])
        assert run["weights"] == own["weights"]


class TestFailure:
    def test_of_one_point_leaves_the_others_and_is_named(
        self,
        beamclip: Invoke,
        sealed_cache: Path,
        shards_dir: Path,
        recipe_file: Path,
        tmp_path: Path,
    ) -> None:
        rows = [{"label": "wild", "set": {"training.learning_rate": 1e30}}, *ROWS]
        file = write_sweep(tmp_path / "s.yaml", recipe_file, rows=rows, seeds=[0])
        words = ["--cache", sealed_cache, "--shards", shards_dir, "--out", tmp_path / "out"]
        found = beamclip("sweep", file, *words, "--workers", 0)
        assert found.code == 3
        assert "1 of 3 runs failed" in found.err
        wild, *others = read(tmp_path / "out")["points"]
        assert wild["runs"][0]["state"] == "failed"
        assert "lower training.learning_rate" in wild["runs"][0]["error"]
        assert wild["scores"] == {}
        assert [point["runs"][0]["state"] for point in others] == ["scored", "scored"]
        assert "0 (1 failed)" in found.out
        assert "failed: wild/seed-0: " in found.out

    def test_of_one_student_leaves_those_that_share_its_stream(
        self, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path, done: Path
    ) -> None:
        rows = [
            {"label": "good", "set": {"student.init": "scratch"}},
            {"label": "bad", "set": {"student.init": str(tmp_path / "nothing.pt")}},
        ]
        shared = {"training.epochs": 1, "student.model": MODEL, "losses": {"csm_ce": {}}}
        file = write_sweep(tmp_path / "s.yaml", recipe_file, rows=rows, set=shared, seeds=[1])
        good, bad = run_file(file, sealed_cache, shards_dir, tmp_path / "out")["points"]
        assert "nothing.pt" in bad["runs"][0]["error"]
        assert_same(
            tmp_path / "out" / good["runs"][0]["folder"],
            done / f"CSM_student.model={MODEL}" / "seed-1",
        )


class TestCommand:
    def test_says_what_is_left_and_does_nothing(
        self,
        beamclip: Invoke,
        copy: Path,
        sealed_cache: Path,
        shards_dir: Path,
        recipe_file: Path,
        tmp_path: Path,
    ) -> None:
        file = sweep_file(tmp_path, recipe_file)
        (copy / f"ISM_student.model={MODEL}" / "seed-0.json").unlink()
        shutil.rmtree(copy / f"CSM_student.model={MODEL}")
        before = sorted(tree.relative_to(copy) for tree in copy.rglob("*"))
        words = ["--cache", sealed_cache, "--shards", shards_dir, "--out", copy]
        found = beamclip("sweep", file, *words, "--dry-run", "--seeds", "0,3")
        assert found.code == 0, found.err
        assert found.out.splitlines() == [
            f"ISM_student.model={MODEL}/seed-0: trained",
            f"ISM_student.model={MODEL}/seed-3: to do",
            f"ISM_student.model={OTHER}/seed-0: scored",
            f"ISM_student.model={OTHER}/seed-3: to do",
            f"CSM_student.model={MODEL}/seed-0: to do",
            f"CSM_student.model={MODEL}/seed-3: to do",
            f"CSM_student.model={OTHER}/seed-0: scored",
            f"CSM_student.model={OTHER}/seed-3: to do",
            "4 points, 8 runs: 5 to train, 6 to score",
        ]
        assert sorted(tree.relative_to(copy) for tree in copy.rglob("*")) == before

    @pytest.mark.parametrize(
        ("option", "first"),
        [
            ("--csv", "row,student.model,zeroshot top1 mean,zeroshot top1 sd,n,failed"),
            ("--markdown", "| row | student.model | zeroshot top1 | n |"),
            ("--json", "{"),
        ],
    )
    def test_prints_in_other_forms(
        self,
        beamclip: Invoke,
        copy: Path,
        sealed_cache: Path,
        shards_dir: Path,
        recipe_file: Path,
        tmp_path: Path,
        option: str,
        first: str,
    ) -> None:
        file = sweep_file(tmp_path, recipe_file)
        words = ["--cache", sealed_cache, "--shards", shards_dir, "--out", copy]
        found = beamclip("sweep", file, *words, option)
        assert found.code == 0, found.err
        assert found.out.splitlines()[0] == first

    @pytest.mark.parametrize(
        ("options", "code", "message"),
        [
            (["--csv", "--json"], 2, "one of --json, --csv and --markdown"),
            (["--seeds", "a"], 2, "expected whole numbers"),
            (["--seeds", "1,1"], 1, "different numbers"),
            (["--set", "student.model=rn18"], 1, "--set and set both set 'student.model'"),
        ],
    )
    def test_refuses(
        self,
        beamclip: Invoke,
        sealed_cache: Path,
        shards_dir: Path,
        recipe_file: Path,
        tmp_path: Path,
        options: list[str],
        code: int,
        message: str,
    ) -> None:
        file = write_sweep(tmp_path / "s.yaml", recipe_file)
        words = ["--cache", sealed_cache, "--shards", shards_dir, "--out", tmp_path / "out"]
        found = beamclip("sweep", file, *words, *options)
        assert found.code == code
        assert message in found.err
