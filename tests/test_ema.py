"""The average follows Eq. 9 with its warm-up, over parameters and buffers alike."""

import copy

import pytest
import torch
from torch import Tensor, nn

from pipeline.ema import Ema


def model(seed: int = 0) -> nn.Module:
    """Return a model with parameters, float buffers and a counter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def drift(module: nn.Module, seed: int) -> None:
    """Change every parameter, and the batch statistics by a forward pass."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    module(torch.randn(8, 4, generator=generator))


def floats(module: nn.Module) -> dict[str, Tensor]:
    state = module.state_dict()
    return {name: v.clone() for name, v in state.items() if v.is_floating_point()}


@pytest.mark.parametrize("warm_up", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
def test_average_is_that_of_a_hand_written_loop(momentum: float, warm_up: bool) -> None:
    student = model()
    ema, expected = Ema(student, momentum, warm_up=warm_up), floats(student)
    for t in range(25):
        drift(student, t)
        ema.update(student)
        m = min(momentum, (1 + t) / (10 + t)) if warm_up else momentum
        expected = {n: m * expected[n] + (1 - m) * v for n, v in floats(student).items()}
    for name, value in expected.items():
        torch.testing.assert_close(ema.state[name], value, rtol=1e-5, atol=1e-6)
    assert ema.updates == 25


def test_batch_statistics_are_averaged_and_counters_copied() -> None:
    student = model()
    ema = Ema(student, 0.9)
    for seed in range(3):
        drift(student, seed)
        ema.update(student)
    assert not torch.equal(ema.state["1.running_mean"], torch.zeros(3))
    assert not torch.equal(ema.state["1.running_mean"], student.state_dict()["1.running_mean"])
    assert ema.state["1.num_batches_tracked"].item() == 3
    assert ema.state["1.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize(("warm_up", "left"), [(False, 0.99**152), (True, 0.0)])
def test_warm_up_forgets_the_random_start_that_eq_9_keeps(warm_up: bool, left: float) -> None:
    student = nn.Linear(1, 1, bias=False)
    nn.init.ones_(student.weight)
    ema = Ema(student, 0.99, warm_up=warm_up)
    nn.init.zeros_(student.weight)
    for _ in range(152):
        ema.update(student)
    assert ema.state["weight"].item() == pytest.approx(left, abs=1e-6)


def test_average_is_no_alias_of_the_model() -> None:
    student = model()
    ema, before = Ema(student, 0.5), copy.deepcopy(student.state_dict())
    drift(student, 0)
    for name, value in before.items():
        assert torch.equal(ema.state[name], value), name
        assert not ema.state[name].requires_grad


def test_update_leaves_the_model_as_it_is() -> None:
    student = model()
    ema = Ema(student, 0.5)
    drift(student, 0)
    before = copy.deepcopy(student.state_dict())
    ema.update(student)
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_restored_average_goes_on_as_the_first_would() -> None:
    student = model()
    straight = Ema(student, 0.99)
    for seed in range(4):
        drift(student, seed)
        straight.update(student)
    restored = Ema(model(seed=1), 0.99)
    restored.load(copy.deepcopy(straight.state), straight.updates)
    for seed in range(4, 8):
        drift(student, seed)
        straight.update(student)
        restored.update(student)
    for name, value in straight.state.items():
        assert torch.equal(restored.state[name], value), name


def test_averaged_state_loads_into_the_model() -> None:
    student = model()
    ema = Ema(student, 0.9)
    drift(student, 0)
    ema.update(student)
    student.load_state_dict(ema.state)
