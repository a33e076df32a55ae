"""How a student is trained follows from its options alone."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.errors import BeamclipError, RecipeError
from pipeline.optimizing import TrainOptions, build_optimizer, check_precision, learning_rate
from pipeline.options import parse


class TestLearningRate:
    def rates(self, per_epoch: int, **options: Any) -> list[float]:
        spec = TrainOptions(**options)
        last = spec.epochs * per_epoch
        return [learning_rate(step, last, per_epoch, spec) for step in range(last)]

    def test_without_warm_up_is_one_cosine_from_the_top_to_nothing(self) -> None:
        found = self.rates(10, epochs=2, learning_rate=0.4)
        expected = [0.2 * (1 + math.cos(math.pi * step / 20)) for step in range(20)]
        assert found == pytest.approx(expected)
        assert found[0] == 0.4
        assert found[10] == pytest.approx(0.2)
        assert 0 < found[-1] < 0.4 * 0.01

    def test_warms_up_in_a_line_and_then_falls(self) -> None:
        found = self.rates(10, epochs=4, learning_rate=1.0, warmup_epochs=1)
        assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
        assert found[10] == 1.0
        assert all(one > other for one, other in pairwise(found[10:]))
        assert found[25] == pytest.approx(0.5)

    def test_is_the_cosine_of_torch(self) -> None:
        parameter = nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([parameter], lr=0.3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)
        expected = []
        for _ in range(12):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert self.rates(3, epochs=4, learning_rate=0.3) == pytest.approx(expected)

    def test_may_warm_up_for_part_of_an_epoch(self) -> None:
        found = self.rates(10, epochs=1, learning_rate=1.0, warmup_epochs=0.25)
        falling = 0.5 * (1 + math.cos(math.pi * 0.5 / 7.5))
        assert found[:4] == pytest.approx([0.4, 0.8, 1.0, falling])

    @pytest.mark.parametrize("epochs", [1, 3])
    def test_is_positive_to_the_last_step(self, epochs: int) -> None:
        for warmup in (0.0, 0.5, epochs - 0.5):
            found = self.rates(3, epochs=epochs, learning_rate=0.1, warmup_epochs=warmup)
            assert all(0 < rate <= 0.1 for rate in found)


class TestRestarts:
    @pytest.mark.parametrize(("first", "factor"), [(2, 1), (1, 2), (3, 2)])
    def test_are_torchs_warm_restarts(self, first: int, factor: int) -> None:
        spec = TrainOptions(
            epochs=12, learning_rate=0.3, restart_epochs=first, restart_factor=factor
        )
        found = [learning_rate(step, 36, 3, spec) for step in range(36)]
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
            optimizer, T_0=3 * first, T_mult=factor
        )
        expected = []
        for _ in range(36):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert found == pytest.approx(expected)

    def test_begin_after_the_warm_up(self) -> None:
        spec = TrainOptions(epochs=9, learning_rate=1.0, warmup_epochs=1, restart_epochs=2)
        found = [learning_rate(step, 90, 10, spec) for step in range(90)]
        assert found[10] == found[30] == found[50] == 1.0
        assert found[29] < 0.01

    def test_half_a_cosine_that_is_left_over_ends_where_it_stands(self) -> None:
        spec = TrainOptions(epochs=3, learning_rate=1.0, restart_epochs=2)
        found = [learning_rate(step, 30, 10, spec) for step in range(30)]
        assert found[20] == 1.0
        assert found[-1] > 0.5


def test_biases_and_norms_do_not_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))
    for name in ("sgd", "adamw"):
        spec = TrainOptions(epochs=1, optimizer=name, weight_decay=0.3, betas=(0.8, 0.95))
        decayed, spared = build_optimizer(model, spec).param_groups
        assert decayed["weight_decay"] == 0.3
        assert all(p.ndim > 1 for p in decayed["params"])
        assert spared["weight_decay"] == 0.0
        assert len(decayed["params"]) + len(spared["params"]) == 5
        if name == "adamw":
            assert decayed["betas"] == (0.8, 0.95)


def test_embeddings_do_not_decay() -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Parameter(torch.zeros(1, 4, 2))
            self.map = nn.Linear(2, 2, bias=False)

        def no_weight_decay(self) -> set[str]:
            return {"places"}

    model = nn.Sequential(nn.Embedding(5, 2), Placed())
    decayed, spared = build_optimizer(model, TrainOptions(epochs=1)).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 2)]
    assert {tuple(p.shape) for p in spared["params"]} == {(5, 2), (1, 4, 2)}


def test_half_precision_with_a_scaler_wants_a_gpu() -> None:
    with pytest.raises(BeamclipError, match="bf16 or fp32"):
        check_precision(TrainOptions(epochs=1, precision="fp16"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "'epochs' is required"),
        ({"epochs": 0}, "epochs, batch_size and accumulate are at least 1"),
        ({"batch_size": 0}, "epochs, batch_size and accumulate are at least 1"),
        ({"accumulate": 0}, "epochs, batch_size and accumulate are at least 1"),
        ({"batch_size": 10, "accumulate": 4}, "multiple of accumulate, not 10 of 4"),
        ({"betas": [0.9, 1.0]}, "betas is at least 0 and below 1, not 1.0"),
        ({"restart_factor": 0.5}, "restart_factor is at least 1, not 0.5"),
        ({"restart_epochs": -1}, "restart_epochs is at least 0, not -1"),
        ({"clip_norm": -1}, "clip_norm is at least 0, not -1"),
        ({"held_out_rows": -1}, "held_out_rows is at least 0, not -1"),
        ({"window_shards": -1}, "window_shards is at least 0, not -1"),
        ({"precision": "fp8"}, "'precision'"),
        ({"warmup_epochs": 1.0}, "warmup_epochs is below epochs"),
        ({"ema": 1.0}, "ema is at least 0 and below 1"),
        ({"ema": -0.1}, "ema is at least 0 and below 1"),
        ({"learning_rate": 0}, "learning_rate is above 0, not 0"),
        ({"learning_rate": -0.1}, "learning_rate is above 0, not -0.1"),
        ({"momentum": 1.0}, "momentum is at least 0 and below 1, not 1.0"),
        ({"momentum": -0.1}, "momentum is at least 0 and below 1, not -0.1"),
        ({"weight_decay": -1}, "weight_decay is at least 0, not -1"),
        ({"warmup_epochs": -1}, "warmup_epochs is at least 0, not -1"),
        ({"checkpoint_steps": -1}, "checkpoint_steps is at least 0, not -1"),
        ({"seed": -1}, "seed is between 0 and"),
        ({"seed": 2**63}, "seed is between 0 and"),
        ({"optimizer": "lion"}, "'optimizer'"),
        ({"learning_rte": 0.1}, "did you mean 'learning_rate'"),
        ({"mixup": 0.2}, "unknown key 'mixup'"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    fields: dict[str, Any], message: str
) -> None:
    given = {"epochs": 1, **fields} if fields else {}
    with pytest.raises(RecipeError, match=message):
        parse(TrainOptions, given, where="test")
