"""A run folder holds whole files of one run, or refuses."""

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline import durable
from pipeline.errors import RunError
from pipeline.rundir import KEEP_CHECKPOINTS, WEIGHTS, RunDir

RECIPE = {"name": "own", "training": {"epochs": 2, "learning_rate": 1e-5}, "list": [1, 2.5, None]}
ORIGIN = {"cache": {"generation": 0, "digest": "abc"}, "made_with": {"machine": "one"}}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "runs" / "own")


@pytest.fixture
def begun(run: RunDir) -> RunDir:
    run.begin(RECIPE, ORIGIN, resume=False)
    return run


def weights(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "matrix": torch.randn(4, 3, generator=generator),
        "turned": torch.randn(4, 3, generator=generator).T,  # not contiguous
        "counter": torch.tensor(7),
    }


def names(run: RunDir) -> list[str]:
    return sorted(path.name for path in run.path.iterdir())


class TestBegin:
    def test_writes_what_the_run_is_made_from(self, begun: RunDir) -> None:
        assert begun.read_recipe() == RECIPE
        assert begun.read_origin() == ORIGIN
        assert names(begun) == ["recipe.yaml", "run.json"]

    def test_of_another_format_is_refused_with_what_to_do(self, begun: RunDir) -> None:
        durable.write_json(begun.path / "run.json", ORIGIN)
        with pytest.raises(RunError, match="expected format version 1, found None"):
            begun.read_origin()

    def test_twice_without_resume_is_refused(self, begun: RunDir) -> None:
        with pytest.raises(RunError, match=r"already holds a run; go on with --resume, or name"):
            begun.begin(RECIPE, ORIGIN, resume=False)

    def test_with_resume_goes_on_or_begins(self, run: RunDir) -> None:
        for _ in range(2):
            run.begin(RECIPE, ORIGIN, resume=True)
        assert run.read_recipe() == RECIPE

    def test_of_another_recipe_is_refused_with_a_diff(self, begun: RunDir) -> None:
        other = {**RECIPE, "training": {"epochs": 3, "learning_rate": 1e-5}, "new": 1}
        with pytest.raises(RunError) as caught:
            begun.begin(other, ORIGIN, resume=True)
        assert "training.epochs: run has 2, asked for 3" in str(caught.value)
        assert "new: run has '(absent)', asked for 1" in str(caught.value)
        assert "learning_rate" not in str(caught.value)
        assert begun.read_recipe() == RECIPE

    def test_of_another_cache_is_refused_with_a_diff(self, begun: RunDir) -> None:
        other = {**ORIGIN, "cache": {"generation": 1, "digest": "abc"}}
        with pytest.raises(RunError, match="generation: run has 0, asked for 1"):
            begun.begin(RECIPE, other, resume=True)

    def test_on_another_machine_is_the_same_run(self, begun: RunDir) -> None:
        begun.begin(RECIPE, {**ORIGIN, "made_with": {"machine": "other"}}, resume=True)
        assert begun.read_origin() == ORIGIN

    def test_goes_on_where_a_kill_came_before_the_recipe_was_written(self, begun: RunDir) -> None:
        (begun.path / "recipe.yaml").unlink()
        begun.begin(RECIPE, ORIGIN, resume=False)
        assert begun.read_recipe() == RECIPE

    def test_sweeps_what_a_killed_run_left_behind(self, begun: RunDir) -> None:
        left_behind = begun.path / ".checkpoint-000000001.pt.0123.tmp"
        left_behind.write_bytes(b"half")
        begun.begin(RECIPE, ORIGIN, resume=True)
        assert not left_behind.exists()


class TestReading:
    def test_where_no_run_is(self, run: RunDir) -> None:
        with pytest.raises(RunError, match=r"holds no run \(no recipe\.yaml\)"):
            run.read_recipe()
        with pytest.raises(RunError, match="not finished"):
            run.load_weights("student")
        assert run.load_checkpoint() is None
        assert not run.is_finished()

    @pytest.mark.parametrize("content", ["", "- a\n", "a: [1", "\x00"])
    def test_a_damaged_recipe_is_an_error(self, begun: RunDir, content: str) -> None:
        (begun.path / "recipe.yaml").write_text(content, encoding="utf-8")
        with pytest.raises(RunError, match=r"recipe\.yaml is damaged"):
            begun.read_recipe()

    @pytest.mark.parametrize("content", ["", "{", "3", None])
    def test_a_damaged_or_missing_origin_is_an_error(
        self, begun: RunDir, content: str | None
    ) -> None:
        path = begun.path / "run.json"
        path.unlink() if content is None else path.write_text(content, encoding="utf-8")
        with pytest.raises(RunError, match=r"run\.json is damaged or gone"):
            begun.begin(RECIPE, ORIGIN, resume=True)


class TestMetrics:
    def test_are_lines_of_json(self, run: RunDir) -> None:
        lines = [{"epoch": 0, "loss": 1.5}, {"epoch": 1, "loss": 1e-9}]
        run.write_metrics(lines)
        text = (run.path / "metrics.jsonl").read_text(encoding="utf-8")
        assert [json.loads(line) for line in text.splitlines()] == lines
        assert run.last_metrics() == lines[1]

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_are_never_nan(self, run: RunDir, bad: float) -> None:
        run.write_metrics([{"loss": 1.0}])
        with pytest.raises(ValueError, match="JSON compliant"):
            run.write_metrics([{"loss": 1.0}, {"loss": bad}])
        assert run.last_metrics() == {"loss": 1.0}
        assert names(run) == ["metrics.jsonl"]

    @pytest.mark.parametrize("content", ["", "{", None])
    def test_that_are_lost_are_an_error(self, run: RunDir, content: str | None) -> None:
        if content is not None:
            run.write_metrics([])
            (run.path / "metrics.jsonl").write_text(content, encoding="utf-8")
        with pytest.raises(RunError, match=r"metrics\.jsonl is damaged or gone"):
            run.last_metrics()


class TestCheckpoints:
    def test_come_back_as_they_were(self, run: RunDir) -> None:
        state = {"step": 3, "weights": weights(), "lines": [{"loss": 1.5}], "text": "a"}
        run.save_checkpoint(3, state)
        found = run.load_checkpoint()
        assert found is not None
        assert found["step"] == 3
        assert found["lines"] == [{"loss": 1.5}]
        assert torch.equal(found["weights"]["matrix"], weights()["matrix"])

    def test_the_last_two_are_kept(self, run: RunDir) -> None:
        for step in (1, 2, 10, 100):
            run.save_checkpoint(step, {"step": step})
        assert KEEP_CHECKPOINTS == 2
        assert names(run) == ["checkpoint-000000010.pt", "checkpoint-000000100.pt"]

    def test_the_newest_is_loaded(self, run: RunDir) -> None:
        for step in (9, 10):
            run.save_checkpoint(step, {"step": step})
        assert run.load_checkpoint() == {"step": 10}

    @pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "text", "list"])
    def test_a_damaged_one_is_passed_over_and_named(
        self, run: RunDir, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        for step in (1, 2):
            run.save_checkpoint(step, {"step": step, "weights": weights(step)})
        path = run.path / "checkpoint-000000002.pt"
        content = path.read_bytes()
        middle = len(content) // 2
        if damage == "list":
            torch.save([1, 2], path)
        else:
            path.write_bytes(
                {
                    "cut": content[:middle],
                    "empty": b"",
                    "zeros": bytes(len(content)),
                    "text": b"<html>",
                }[damage]
            )
        found = run.load_checkpoint()
        assert found is not None
        assert found["step"] == 1
        assert "checkpoint-000000002.pt does not load" in caplog.text
        assert "going on from checkpoint-000000001.pt" in caplog.text

    def test_a_flipped_bit_never_becomes_a_weight(self, run: RunDir) -> None:
        run.save_checkpoint(1, {"weights": torch.arange(600.0)})
        path = run.path / "checkpoint-000000001.pt"
        content = path.read_bytes()
        refused = 0
        for place in range(0, len(content), 23):
            flipped = bytearray(content)
            flipped[place] ^= 1
            path.write_bytes(flipped)
            try:
                found = run.load_checkpoint()
            except RunError:
                refused += 1
            else:  # the bit was padding
                assert found is not None
                assert torch.equal(found["weights"], torch.arange(600.0))
        assert refused > 600 * 4 / 23

    def test_with_none_left_that_loads_it_is_an_error_that_names_each(self, run: RunDir) -> None:
        for step in (1, 2):
            run.save_checkpoint(step, {"step": step})
            (run.path / f"checkpoint-00000000{step}.pt").write_bytes(b"")
        with pytest.raises(RunError, match="no checkpoint is left") as caught:
            run.load_checkpoint()
        for step in (1, 2):
            assert f"checkpoint-00000000{step}.pt does not load" in str(caught.value)

    def test_a_pickled_object_is_refused_and_never_run(self, run: RunDir, tmp_path: Path) -> None:
        class Payload:
            def __reduce__(self) -> Any:
                return Path.touch, (tmp_path / "was-run",)

        run.path.mkdir(parents=True)
        torch.save({"step": Payload()}, run.path / "checkpoint-000000001.pt")
        (run.path / "checkpoint-000000002.pt").write_bytes(pickle.dumps({"step": Payload()}))
        with pytest.raises(RunError, match="does not load"):
            run.load_checkpoint()
        assert not (tmp_path / "was-run").exists()

    def test_one_that_fails_to_be_written_leaves_the_others_alone(self, run: RunDir) -> None:
        run.save_checkpoint(1, {"step": 1})
        with pytest.raises(Exception, match="pickle"):
            run.save_checkpoint(2, {"step": lambda: None})
        assert names(run) == ["checkpoint-000000001.pt"]

    def test_half_written_ones_are_not_seen(self, run: RunDir) -> None:
        run.save_checkpoint(1, {"step": 1})
        (run.path / ".checkpoint-000000002.pt.0123.tmp").write_bytes(b"half")
        assert run.load_checkpoint() == {"step": 1}


class TestWeights:
    @pytest.fixture
    def finished(self, begun: RunDir) -> RunDir:
        begun.save_weights({"student": weights(1), "student_raw": weights(2)})
        return begun

    def test_come_back_as_they_were_and_end_the_run(self, finished: RunDir) -> None:
        assert finished.is_finished()
        for name, seed in (("student", 1), ("student_raw", 2)):
            for key, value in finished.load_weights(name).items():
                assert torch.equal(value, weights(seed)[key]), key

    def test_are_plain_safetensors(self, finished: RunDir) -> None:
        assert load_file(finished.path / "student.safetensors").keys() == weights().keys()

    def test_the_students_come_last(self, begun: RunDir) -> None:
        """What ends a run is there only when all else is."""
        with pytest.raises(Exception, match="object"):
            begun.save_weights({"student": {"bad": object()}, "student_raw": weights()})
        assert not begun.is_finished()
        assert "student_raw.safetensors" in names(begun)

    @pytest.mark.parametrize("name", WEIGHTS)
    @pytest.mark.parametrize("size", [0, 7, 60])
    def test_that_are_cut_off_are_an_error(self, finished: RunDir, name: str, size: int) -> None:
        path = finished.path / WEIGHTS[name]
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(RunError, match=rf"{WEIGHTS[name]} is damaged or gone"):
            finished.load_weights(name)

    def test_that_are_gone_are_an_error(self, finished: RunDir) -> None:
        (finished.path / WEIGHTS["student_raw"]).unlink()
        with pytest.raises(RunError, match=r"student_raw\.safetensors is damaged or gone"):
            finished.load_weights("student_raw")


class TestFiles:
    @pytest.fixture(params=[0o022, 0o027])
    def umask(self, request: pytest.FixtureRequest) -> Iterator[int]:
        before = os.umask(request.param)
        yield request.param
        os.umask(before)

    def test_can_be_read_by_those_whom_the_umask_lets(self, run: RunDir, umask: int) -> None:
        run.begin(RECIPE, ORIGIN, resume=False)
        run.write_metrics([{"loss": 1.0}])
        run.save_checkpoint(1, {"step": 1})
        run.save_weights({"student": weights(), "student_raw": weights()})
        run.write_scores({"student": {"linear": {"accuracy": 0.5}}})
        modes = {path.name: path.stat().st_mode & 0o777 for path in run.path.iterdir()}
        assert len(modes) == 7
        assert set(modes.values()) == {0o666 & ~umask}

    def test_leave_no_temporaries(self, begun: RunDir) -> None:
        begun.write_metrics([{"loss": 1.0}])
        begun.save_checkpoint(1, {"step": 1})
        begun.save_weights({"student": weights(), "student_raw": weights()})
        begun.write_scores({})
        assert not [name for name in names(begun) if name.startswith(".")]

    def test_scores_are_json_without_nan(self, run: RunDir) -> None:
        run.write_scores({"student": {"linear": {"accuracy": 0.5}}})
        with pytest.raises(ValueError, match="JSON compliant"):
            run.write_scores({"student": {"linear": {"accuracy": float("nan")}}})
        found = json.loads((run.path / "probe.json").read_text(encoding="utf-8"))
        assert found == {"student": {"linear": {"accuracy": 0.5}}}
