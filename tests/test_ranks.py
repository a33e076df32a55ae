"""Processes that train one student together do what one alone does, and stop together."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.ranks import ALONE, Ranks, joined, ranks_of_environment
from pipeline.rundir import RunDir
from tests.runs import small_recipe, train

STUDENT = "test_vit"  # of timm; without batch statistics
DEADLINE = 240


def command(*arguments: object, ranks: int = 2) -> list[str]:
    """Return the command line that trains on so many ranks of this machine."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    start += ["--nproc-per-node", str(ranks), "--", sys.executable, "-m", "pipeline.cli"]
    return [*start, "train-student", "--device", "cpu", *map(str, arguments)]


def run(*arguments: object, ranks: int = 2, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments, ranks=ranks),
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def shared(sealed_cache: Path, shards_dir: Path, recipe_file: Path) -> list[object]:
    return ["--cache", sealed_cache, "--shards", shards_dir, "--recipe", recipe_file]


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert ranks_of_environment() == ALONE
    with joined(ALONE, torch.device("cpu")):
        assert ALONE.mean(torch.tensor([3.0])).item() == 3.0
        assert ALONE.agree(7)
        ALONE.meet()


def test_with_torchrun_it_is_told_which_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "8"), ("RANK", "5"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert ranks_of_environment() == Ranks(rank=5, size=8, local=1)
    assert not ranks_of_environment().leads


@pytest.mark.slow
@pytest.mark.parametrize(
    "losses",
    [
        (),
        # Keys of the other rank and a bank, and parameters of a loss's own.
        ("losses.crd={bank: 12}", "losses.supervised={}", "training.clip_norm=1.0"),
    ],
)
def test_two_ranks_train_as_one_with_the_same_global_batch(
    shared: list[object],
    sealed_cache: Path,
    shards_dir: Path,
    recipe_file: Path,
    tmp_path: Path,
    losses: tuple[str, ...],
) -> None:
    chosen = (f"student.model={STUDENT}", "training.ema=0.5", *losses)
    train(small_recipe(recipe_file, *chosen), sealed_cache, shards_dir, tmp_path / "one")
    settings = [part for field in chosen for part in ("--set", field)]
    done = run(*shared, *settings, "--run", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    for name in ("student", "student_raw"):
        one, two = (RunDir(tmp_path / n).load_weights(name) for n in ("one", "two"))
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=1e-3, atol=2e-5)
    for one_line, two_line in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert two_line["step"] == one_line["step"]
        assert two_line["loss"] == pytest.approx(one_line["loss"], rel=1e-4)
    assert done.stdout.count("trained in") == 1  # the first rank alone speaks


@pytest.mark.slow
def test_nan_on_one_rank_stops_both_with_the_last_checkpoint_kept(
    shared: list[object], tmp_path: Path
) -> None:
    """The second rank's share of step 4 is poisoned; both name it, and none hangs."""
    poison = tmp_path / "poison.py"
    poison.write_text(
        """
import os, sys
import torch
from pipeline.batches import TrainingBatches
real = TrainingBatches._batch
def poisoned(self, step):
    batch = real(self, step)
    if step == 4 and os.environ["RANK"] == "1":
        batch.keys_GD[batch.first] = torch.nan
    return batch
TrainingBatches._batch = poisoned
from pipeline.cli import main
main(sys.argv[1:])
""",
        encoding="utf-8",
    )
    arguments = command(*shared, "--run", tmp_path / "run", "--set", f"student.model={STUDENT}")
    place = arguments.index("-m", arguments.index("--"))
    arguments[place : place + 2] = [str(poison)]
    done = subprocess.run(
        arguments,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode != 0
    assert len(re.findall(r"the loss is nan at step 4", done.stderr)) >= 1
    assert "lost the others" not in done.stderr
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*.pt")
    assert checkpoint.name == "checkpoint-000000003.pt"
    assert not RunDir(tmp_path / "run").is_finished()


@pytest.mark.slow
def test_when_a_rank_dies_the_others_leave_in_bounded_time(
    shared: list[object], tmp_path: Path
) -> None:
    settings = ["--set", f"student.model={STUDENT}", "--set", "training.epochs=5000"]
    process = subprocess.Popen(
        command(*shared, *settings, "--run", tmp_path / "run"),
        env=os.environ | {"OMP_NUM_THREADS": "1", "BEAMCLIP_RANK_SECONDS": "30"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(lambda: list((tmp_path / "run").glob("checkpoint-*.pt")))
        children = _children(process.pid)
        assert len(children) == 2
        os.kill(children[1], signal.SIGKILL)
        assert process.wait(90) != 0
        _wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    finally:
        process.kill()
        process.wait()
    assert not RunDir(tmp_path / "run").is_finished()


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(
    shared: list[object],
    sealed_cache: Path,
    shards_dir: Path,
    recipe_file: Path,
    tmp_path: Path,
) -> None:
    chosen = (f"student.model={STUDENT}", "training.checkpoint_steps=1")
    settings = [part for field in chosen for part in ("--set", field)]
    arguments = [*shared, *settings, "--run", tmp_path / "run"]
    killed = run(*arguments, BEAMCLIP_FAULT_POINT="in-checkpoint:4")
    assert killed.returncode != 0
    recipe = small_recipe(recipe_file, *chosen)
    train(recipe, sealed_cache, shards_dir, tmp_path / "run", resume=True)
    train(recipe, sealed_cache, shards_dir, tmp_path / "straight")
    one, two = (RunDir(tmp_path / n).load_weights("student_raw") for n in ("straight", "run"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_told_before_training(
    shared: list[object], tmp_path: Path
) -> None:
    done = run(*shared, "--run", tmp_path / "run", "--set", "training.batch_size=7")
    assert done.returncode != 0
    assert "take a multiple of 2" in done.stderr


def _wait_for(what: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def _children(parent: int) -> list[int]:
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="utf-8")
    return [int(child) for child in text.split()]
