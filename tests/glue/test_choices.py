"""The options of fine-tuning: BERT's by default, for all tasks or for one."""

import pytest

from pipeline.errors import RecipeError
from pipeline.glue.choices import GlueOptions, glue_options


def test_defaults_are_berts() -> None:
    spec = glue_options()
    assert (spec.learning_rate, spec.batch_size, spec.epochs) == (2e-5, 32, 3)
    assert (spec.warmup, spec.max_tokens, spec.dropout) == (0.1, 128, 0.1)


def test_a_task_may_have_options_of_its_own() -> None:
    spec = glue_options(["epochs=4", "tasks.rte.epochs=10", "tasks.rte.learning_rate=0.001"])
    assert spec.for_task("cola") == GlueOptions(epochs=4)
    assert spec.for_task("rte") == GlueOptions(epochs=10, learning_rate=1e-3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epoch=3", "unknown key 'epoch': did you mean 'epochs'"),
        ("tasks.rtr.epochs=3", "tasks has no 'rtr': did you mean 'rte'"),
        ("tasks.rte.dropout=0.5", "unknown key 'tasks.rte.dropout'"),
        ("tasks.rte.epochs=0", "epochs is at least 1, not 0"),
        ("learning_rate=0", "learning_rate is above 0"),
        ("warmup=1", "warmup is at least 0 and below 1"),
        ("clip_norm=-1", "clip_norm is at least 0"),
        ("max_tokens=2", "max_tokens is at least 8"),
        ("epochs", "expected option=value"),
        ("epochs=[", "is no value"),
    ],
)
def test_wrong_options_are_told(override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        glue_options([override])
    assert message in str(caught.value)
