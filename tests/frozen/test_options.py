"""The options of the ablation, and what the trainer's rates and optimiser make of them."""

from typing import Any

import pytest

from pipeline.frozen.options import FrozenOptions


def test_the_trainer_is_told_the_same() -> None:
    spec = FrozenOptions(epochs=10, batch_size=7, learning_rate=0.5, seed=3)
    training = spec.training()
    assert (training.epochs, training.batch_size, training.seed) == (10, 7, 3)
    assert (training.optimizer, training.learning_rate) == ("adamw", 0.5)
    assert (training.betas, training.weight_decay, training.warmup_epochs) == (
        *((0.9, 0.98), 0.01),
        1.0,
    )


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate is above 0"),
        ({"seed": -1}, "seed is between"),
        ({"width": 0}, "width"),
        ({"width": 1, "mlp_ratio": 0.5}, "mlp_ratio"),
    ],
)
def test_what_cannot_be_is_told(wrong: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        FrozenOptions(**wrong)
