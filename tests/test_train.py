"""Training is one function of recipe and cache, however often it is interrupted."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.bank import Bank
from pipeline.batches import TrainingBatches, ViewBatch
from pipeline.cache.reader import TargetCache
from pipeline.contracts import Keys
from pipeline.errors import StudentError
from pipeline.losses import LossSum, Sizes, parse_terms, resolve_tau
from pipeline.optimizing import TrainOptions
from pipeline.rundir import RunDir
from pipeline.shards import find_shards
from pipeline.students import Student, StudentOptions, build_student
from pipeline.train import TeacherAnchors, _take, _targets, train_students
from pipeline.trainee import Trainee
from tests.runs import MODEL, small_recipe
from tests.runs import train as train_by_recipe

CPU = torch.device("cpu")
PX = 32
TIMING = {"seconds", "images_per_second", "data_wait_share"}
LOSSES = {"csm_ce": {}, "entmin": {}, "ism": {"weight": 10}}


class Stop(Exception):
    """Stands for whatever ends a process."""


class Stopping:
    """A source of targets that stops before a step."""

    def __init__(self, source: TrainingBatches, before: int) -> None:
        self.source, self.before = source, before
        self.steps_per_epoch = source.steps_per_epoch

    def starting_at(self, step: int, stop: int) -> Iterator[ViewBatch]:
        yield from self.source.starting_at(step, min(stop, self.before))
        raise Stop

    def keys_before(self, step: int, count: int) -> Keys:
        return self.source.keys_before(step, count)


class Bench:
    """Trains on the tests' cache, in folders of its own."""

    def __init__(self, cache: Path, shards: Path, folder: Path, device: torch.device = CPU) -> None:
        self.cache, self.shards, self.folder = TargetCache.open(cache), shards, folder
        self.device = device

    def source(self, batch_size: int = 8) -> TrainingBatches:
        return TrainingBatches(
            self.cache,
            find_shards([str(self.shards)]),
            sizes=(PX,),
            batch_size=batch_size,
            num_views=2,
            seed=0,
            device=self.device,
        )

    def student(self, model: str = MODEL) -> Student:
        return build_student(StudentOptions(model=model), dim=self.cache.dim, input_px=PX, seed=0)

    def train(
        self,
        name: str,
        *,
        student: Student | None = None,
        stop_before: int | None = None,
        batch_size: int = 8,
        losses: dict[str, Any] = LOSSES,
        **options: Any,
    ) -> dict[str, Any]:
        source = self.source(batch_size)
        spec = TrainOptions(**{"epochs": 2, "learning_rate": 0.02, **options})
        anchors_AD = torch.from_numpy(self.cache.anchors("shapes-context").embeddings_AD)
        (metrics,) = train_students(
            [self.trainee(name, student or self.student(), spec, losses)],
            source if stop_before is None else Stopping(source, stop_before),
            [TeacherAnchors(anchors_AD, self.cache.logit_scale)],
            spec,
            device=self.device,
        )
        return metrics

    def trainee(
        self, name: str, student: Student, spec: TrainOptions, losses: dict[str, Any] = LOSSES
    ) -> Trainee:
        terms = resolve_tau(parse_terms(losses, where="test"), self.cache.logit_scale)
        sizes = Sizes(student.num_features, self.cache.dim, num_anchors=3, num_classes=3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            total = LossSum(terms, sizes)
        return Trainee(self.run(name), student, total, spec, size=PX, device=self.device)

    def run(self, name: str) -> RunDir:
        return RunDir(self.folder / name)


@pytest.fixture
def bench(sealed_cache: Path, shards_dir: Path, tmp_path: Path) -> Bench:
    return Bench(sealed_cache, shards_dir, tmp_path)


def lines(run: RunDir) -> list[dict[str, Any]]:
    """Return the metrics of a run without what a clock decides."""
    text = (run.path / "metrics.jsonl").read_text(encoding="utf-8")
    return [
        {name: value for name, value in json.loads(line).items() if name not in TIMING}
        for line in text.splitlines()
    ]


def assert_same_run(one: RunDir, other: RunDir) -> None:
    """Both sets of weights and all metrics agree to the last bit."""
    for name in ("student", "student_raw"):
        assert_same_tensors(one.load_weights(name), other.load_weights(name))
    assert lines(one) == lines(other)


def assert_same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def noisy_student(dim: int) -> Student:
    """Return a student that draws random numbers as it trains."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * PX * PX, 12), nn.Dropout(0.5))
        return Student(backbone, 12, dim, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class TestResume:
    @pytest.mark.parametrize(
        ("stop_before", "checkpoint_steps"),
        [
            (3, 0),  # the end of an epoch
            (5, 0),  # mid-epoch: goes back to the end of the one before
            (5, 2),  # mid-epoch: goes back to step 4
            (1, 1),
            (0, 0),  # before anything was saved
            (2, 0),
        ],
    )
    def test_an_interrupted_run_ends_as_the_straight_one_bit_for_bit(
        self, bench: Bench, stop_before: int, checkpoint_steps: int
    ) -> None:
        settings = {"checkpoint_steps": checkpoint_steps, "weight_decay": 1e-3, "epochs": 3}
        bench.train("straight", **settings)
        with pytest.raises(Stop):
            bench.train("stopped", stop_before=stop_before, **settings)
        assert not bench.run("stopped").is_finished()
        bench.train("stopped", **settings)
        assert_same_run(bench.run("stopped"), bench.run("straight"))

    def test_so_does_one_interrupted_at_every_step(self, bench: Bench) -> None:
        settings = {"checkpoint_steps": 1, "optimizer": "adamw", "learning_rate": 1e-3}
        bench.train("straight", **settings)
        for step in range(1, 6):
            with pytest.raises(Stop):
                bench.train("stopped", stop_before=step, **settings)
        bench.train("stopped", **settings)
        assert_same_run(bench.run("stopped"), bench.run("straight"))

    def test_so_does_a_student_that_draws_random_numbers(self, bench: Bench) -> None:
        dim = bench.cache.dim
        settings = {"checkpoint_steps": 2}
        torch.manual_seed(1)
        bench.train("straight", student=noisy_student(dim), **settings)
        with pytest.raises(Stop):
            bench.train("stopped", student=noisy_student(dim), stop_before=4, **settings)
        torch.manual_seed(2)  # another process has drawn other numbers before
        bench.train("stopped", student=noisy_student(dim), **settings)
        assert_same_run(bench.run("stopped"), bench.run("straight"))

    def test_a_run_stopped_after_its_last_step_only_writes_its_weights(self, bench: Bench) -> None:
        bench.train("run")
        run = bench.run("run")
        weights = run.load_weights("student")
        (run.path / "student.safetensors").unlink()
        metrics = bench.train("run")
        assert metrics["epoch"] == 1
        assert_same_tensors(run.load_weights("student"), weights)

    def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench.train("straight", checkpoint_steps=1)
        with pytest.raises(Stop):
            bench.train("stopped", stop_before=5, checkpoint_steps=1)
        newest = bench.run("stopped").path / "checkpoint-000000005.pt"
        newest.write_bytes(newest.read_bytes()[:1000])
        bench.train("stopped", checkpoint_steps=1)
        assert "checkpoint-000000005.pt does not load" in caplog.text
        assert_same_run(bench.run("stopped"), bench.run("straight"))

    @pytest.mark.parametrize("foreign", ["values", "student"])
    def test_a_checkpoint_of_something_else_is_an_error(self, bench: Bench, foreign: str) -> None:
        with pytest.raises(Stop):
            bench.train("run", stop_before=4)
        if foreign == "values":
            bench.run("run").save_checkpoint(9, {"weights": torch.zeros(3)})
            student = bench.student()
        else:
            student = noisy_student(bench.cache.dim)
        with pytest.raises(StudentError, match=r"name another --run"):
            bench.train("run", student=student)

    def test_a_kill_while_saving_a_checkpoint_loses_no_more_than_that_checkpoint(
        self, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        settings = ("training.checkpoint_steps=2", f"student.model={MODEL}")
        recipe = small_recipe(recipe_file, *settings)
        train_by_recipe(recipe, sealed_cache, shards_dir, tmp_path / "straight")

        command = [sys.executable, "-m", "pipeline.cli", "train-student"]
        command += ["--cache", str(sealed_cache), "--shards", str(shards_dir), "--device", "cpu"]
        command += ["--recipe", str(recipe_file), "--run", str(tmp_path / "killed")]
        command += [part for setting in settings for part in ("--set", setting)]
        # Checkpoints fall due after steps 2, 3 (an epoch), 4 and 6.
        environment = {"BEAMCLIP_FAULT_POINT": "in-checkpoint:3", "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            command, env=os.environ | environment, capture_output=True, timeout=120, check=False
        )
        assert result.returncode == -signal.SIGKILL, result.stderr
        run = RunDir(tmp_path / "killed")
        assert not run.is_finished()
        names = sorted(path.name for path in run.path.glob("checkpoint-*"))
        assert names == ["checkpoint-000000002.pt", "checkpoint-000000003.pt"]
        assert list(run.path.glob(".*.tmp"))  # what the kill left behind

        train_by_recipe(recipe, sealed_cache, shards_dir, run.path, resume=True)
        assert_same_run(run, RunDir(tmp_path / "straight"))
        assert not list(run.path.glob(".*.tmp"))


class TestRun:
    def test_the_loss_goes_down(self, bench: Bench) -> None:
        bench.train("run", epochs=8, losses={"csm_ce": {}, "ism": {"weight": 10}})
        found = lines(bench.run("run"))
        assert found[-1]["loss"] < found[0]["loss"]
        assert found[-1]["ism"] < found[0]["ism"]
        assert found[-1]["ism"] < -0.9

    def test_a_line_of_metrics_says_all_of_an_epoch(self, bench: Bench) -> None:
        last = bench.train("run")
        text = (bench.run("run").path / "metrics.jsonl").read_text(encoding="utf-8")
        found = [json.loads(line) for line in text.splitlines()]
        assert found[-1] == last
        assert [(line["epoch"], line["step"]) for line in found] == [(0, 3), (1, 6)]
        for line in found:
            assert line.keys() == {"epoch", "step", "loss", *LOSSES, "learning_rate"} | TIMING
            terms = line["csm_ce"] + line["entmin"] + 10 * line["ism"]
            assert line["loss"] == pytest.approx(terms, rel=1e-5)
            assert line["images_per_second"] > 0
            samples = 3 * 8  # steps of the epoch, samples of each
            assert line["seconds"] * line["images_per_second"] == pytest.approx(samples, rel=0.05)
            assert 0 <= line["data_wait_share"] <= 1

    def test_saves_the_average_beside_the_raw_weights(self, bench: Bench) -> None:
        student = bench.student()
        bench.train("run", student=student)
        run = bench.run("run")
        assert_same_tensors(run.load_weights("student_raw"), dict(student.state_dict()))
        averaged = run.load_weights("student")
        assert not torch.equal(averaged["projection.weight"], student.projection.weight)

    def test_without_averaging_both_are_the_same(self, bench: Bench) -> None:
        bench.train("run", ema=0.0)
        run = bench.run("run")
        assert_same_tensors(run.load_weights("student"), run.load_weights("student_raw"))

    def test_leaves_the_global_generator_alone(self, bench: Bench) -> None:
        before = torch.get_rng_state()
        bench.train("run", student=noisy_student(bench.cache.dim))
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_step_is_the_gradient_step_of_the_weighted_mean(self, bench: Bench) -> None:
        """One step of plain SGD, by hand."""
        by_hand, student = bench.student().train(), bench.student()
        (batch,) = bench.source(100).starting_at(0, 1)
        outputs = by_hand(batch.views(CPU))
        loss = -10 * (outputs.embedding_BD * batch.target_BD).sum(dim=1).mean()
        loss.backward()
        bench.train(
            "run",
            student=student,
            batch_size=100,
            epochs=1,
            losses={"ism": {"weight": 10}},
            learning_rate=0.1,
            momentum=0.0,
            weight_decay=0.01,
        )
        for (name, one), other in zip(
            by_hand.named_parameters(), student.parameters(), strict=True
        ):
            decay = 0.01 if one.ndim > 1 else 0.0
            expected = one - 0.1 * (one.grad + decay * one)
            torch.testing.assert_close(other, expected, rtol=1e-5, atol=1e-6, msg=name)

    @pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
    def test_one_dimensional_parameters_do_not_decay(self, bench: Bench, optimizer: str) -> None:
        """A loss without a gradient leaves weight decay alone at work."""
        student = bench.student()
        before = {name: value.detach().clone() for name, value in student.named_parameters()}
        bench.train(
            "run",
            student=student,
            optimizer=optimizer,
            losses={"ism": {"weight": 1e-30}},
            weight_decay=0.5,
            momentum=0.0,
        )
        for name, value in student.named_parameters():
            if value.ndim > 1:
                assert value.norm() < 0.99 * before[name].norm(), name
            else:
                torch.testing.assert_close(value, before[name], rtol=0, atol=1e-12, msg=name)

    def test_too_large_a_rate_is_an_error_and_keeps_the_checkpoint_before(
        self, bench: Bench
    ) -> None:
        with pytest.raises(Stop):
            bench.train("run", stop_before=3)
        before = bench.run("run").load_checkpoint()
        with pytest.raises(StudentError, match=r"step \d+: lower training\.learning_rate"):
            bench.train("run", learning_rate=1e38, epochs=9)
        after = bench.run("run").load_checkpoint()
        assert before is not None
        assert after is not None
        assert before["step"] == after["step"] == 3
        assert not bench.run("run").is_finished()

    def test_weights_that_overflow_in_the_last_step_are_no_result(self, bench: Bench) -> None:
        """The loss is still finite then: it was of the weights before the step."""
        with pytest.raises(StudentError, match=r"learning_rate"):
            bench.train("run", batch_size=100, epochs=1, learning_rate=3e38, weight_decay=10.0)
        assert bench.run("run").load_checkpoint() is None
        assert not bench.run("run").is_finished()

    def test_a_batch_too_small_for_batch_norm_is_an_error_that_says_so(self, bench: Bench) -> None:
        with pytest.raises(StudentError, match=r"batch_size"):
            bench.train("run", student=bench.student("resnet10t"), batch_size=1)


class TestParts:
    """Ways of working that cost no number, or little."""

    def test_a_step_in_parts_is_the_step_in_one_without_batch_statistics(
        self, bench: Bench
    ) -> None:
        # Keys are of the whole step, so crd sees the same negatives in parts.
        losses = {**LOSSES, "crd": {"bank": 10}, "seed": {"bank": 10}}
        for parts in (1, 4):
            bench.train(
                str(parts),
                student=bench.student("test_vit"),
                losses=losses,
                accumulate=parts,
                clip_norm=1.0,
            )
        one, four = (bench.run(name).load_weights("student_raw") for name in ("1", "4"))
        for name, value in one.items():
            torch.testing.assert_close(four[name], value, rtol=1e-3, atol=2e-5)

    def test_parts_that_do_not_divide_what_there_is_are_an_error(self, bench: Bench) -> None:
        with pytest.raises(StudentError, match=r"do not divide into training\.accumulate 16"):
            bench.train("run", batch_size=100, accumulate=16)  # 24 rows make one step

    def test_gradients_are_clipped_to_their_norm(self, bench: Bench) -> None:
        rate, limit = 1e-3, 1e-6
        student = bench.student("test_vit")
        before = {name: value.clone() for name, value in student.state_dict().items()}
        bench.train(
            "run",
            student=student,
            epochs=1,
            batch_size=24,
            learning_rate=rate,
            clip_norm=limit,
            weight_decay=0.0,
        )
        after = bench.run("run").load_weights("student_raw")
        moved = torch.cat([(after[name] - value).flatten() for name, value in before.items()])
        assert 0 < moved.norm() <= rate * limit * 1.01

    @pytest.mark.parametrize(
        "settings", [{"precision": "bf16"}, {"channels_last": True}], ids=["bf16", "channels_last"]
    )
    def test_other_ways_of_computing_end_near_the_plain_one_and_resume_exactly(
        self, bench: Bench, settings: dict[str, Any]
    ) -> None:
        plain = bench.train("plain")
        straight = bench.train("straight", **settings)
        assert straight["loss"] == pytest.approx(plain["loss"], rel=0.05)
        assert straight["loss"] != plain["loss"] or settings == {"channels_last": True}
        with pytest.raises(Stop):
            bench.train("stopped", stop_before=5, checkpoint_steps=2, **settings)
        bench.train("stopped", checkpoint_steps=2, **settings)
        assert_same_run(bench.run("stopped"), bench.run("straight"))
        for value in bench.run("straight").load_weights("student").values():
            assert value.dtype != torch.bfloat16

    def test_a_loss_with_parameters_and_one_with_a_bank_resume_exactly(self, bench: Bench) -> None:
        losses = {"supervised": {}, "seed": {"bank": 20}, "crd": {"bank": 9}}
        bench.train("straight", losses=losses, checkpoint_steps=2)
        with pytest.raises(Stop):
            bench.train("stopped", losses=losses, stop_before=5, checkpoint_steps=2)
        bench.train("stopped", losses=losses, checkpoint_steps=2)
        assert_same_run(bench.run("stopped"), bench.run("straight"))
        saved = bench.run("straight").load_checkpoint()
        assert saved is not None
        assert any("supervised" in name for name in saved["losses"])


@pytest.fixture
def gpu(sealed_cache: Path, shards_dir: Path, tmp_path: Path) -> Bench:
    return Bench(sealed_cache, shards_dir, tmp_path / "gpu", torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "fp32"},
        {"precision": "bf16", "channels_last": True},
        {"precision": "fp16", "channels_last": True},
        {"precision": "bf16", "compile": True},
        {"clip_norm": 100.0, "accumulate": 2, "optimizer": "sgd"},
    ],
    ids=str,
)
def test_a_gpu_ends_near_where_a_cpu_does(
    bench: Bench, gpu: Bench, settings: dict[str, Any]
) -> None:
    # Of two epochs fp16 would lack a third: steps are skipped until the scale of the loss fits.
    plain = bench.train("plain", epochs=4)
    found = gpu.train("gpu", epochs=4, **settings)
    assert found["loss"] == pytest.approx(plain["loss"], rel=0.1)
    assert not any(value.is_cuda for value in gpu.run("gpu").load_weights("student").values())


@pytest.mark.gpu
def test_a_gpu_goes_on_from_its_checkpoint(gpu: Bench) -> None:
    straight = gpu.train("straight")
    with pytest.raises(Stop):
        gpu.train("stopped", stop_before=5, checkpoint_steps=2)
    found = gpu.train("stopped", checkpoint_steps=2)
    assert found["loss"] == pytest.approx(straight["loss"], rel=0.02)


@pytest.mark.gpu
def test_training_steps_do_not_wait_for_the_gpu(gpu: Bench) -> None:
    """But to look at the loss of the step before, when the next one has been begun."""
    spec = TrainOptions(epochs=2, learning_rate=0.02, precision="bf16", clip_norm=1.0)
    losses = LOSSES | {"supervised": {}, "crd": {"bank": 9}}
    trainee = gpu.trainee("gpu", gpu.student(), spec, losses)
    anchors_AD = torch.from_numpy(gpu.cache.anchors("shapes-context").embeddings_AD)
    teachers = [TeacherAnchors(anchors_AD.cuda(), gpu.cache.logit_scale)]
    bank = Bank(gpu.source(), trainee.bank, gpu.device)
    for step, batch in enumerate(gpu.source().starting_at(0, 6)):
        torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")  # after starting up
        try:
            targets = _targets(batch, teachers, bank, step, gpu.device)
            _take([trainee], batch, targets, 0.02)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    trainee.collect()
    assert trainee.sums.samples == 6 * 8
