"""How a text encoder is fine-tuned: BERT's protocol (Devlin et al. 2019, section 4.1, A.3)."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import yaml

from pipeline.errors import RecipeError
from pipeline.glue.tasks import TASKS
from pipeline.options import nearest, options, parse
from pipeline.recipe import set_field


@options
class TaskOptions:
    """What is otherwise for one task; None: as for all."""

    learning_rate: float | None = None
    batch_size: int | None = None
    epochs: int | None = None


@options
class GlueOptions:
    """How every task is fine-tuned, and in `tasks`, by name, what is otherwise for one of them."""

    learning_rate: float = 2e-5
    batch_size: int = 32
    epochs: int = 3
    warmup: float = 0.1  # share of the steps; then linearly to 0
    weight_decay: float = 0.01  # not on biases and norms, which have one dimension
    clip_norm: float = 1.0  # the greatest norm of all gradients together; 0: any
    dropout: float = 0.1  # before the last layer; the encoder's own is its own
    max_tokens: int = 128  # of a text or a pair; the encoder's own bound counts too
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    tasks: dict[str, TaskOptions] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.tasks:
            if name not in TASKS:
                raise ValueError(f"tasks has no {name!r}: {nearest(name, TASKS)}")
        _check_common(self)
        for own in self.tasks.values():
            _check_common(own)
        for name in ("warmup", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 0 and below 1, not {getattr(self, name)}")
        for name in ("weight_decay", "clip_norm"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is at least 0, not {getattr(self, name)}")
        if self.max_tokens < 8:
            raise ValueError(f"max_tokens is at least 8, not {self.max_tokens}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is between 0 and 2**63 - 1, not {self.seed}")

    def for_task(self, name: str) -> "GlueOptions":
        """Return the options with what is otherwise for a task in place."""
        own = dataclasses.asdict(self.tasks.get(name, TaskOptions()))
        changed = {key: value for key, value in own.items() if value is not None}
        return dataclasses.replace(self, tasks={}, **changed)


def _check_common(found: GlueOptions | TaskOptions) -> None:
    for name in ("batch_size", "epochs"):
        value = getattr(found, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} is at least 1, not {value}")
    if found.learning_rate is not None and found.learning_rate <= 0:
        raise ValueError(f"learning_rate is above 0, not {found.learning_rate}")


def glue_options(overrides: Sequence[str] = ()) -> GlueOptions:
    """Return the options with `a=value` and `tasks.rte.a=value` in place; raises RecipeError."""
    fields: dict[str, Any] = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        where = f"--set {override!r}"
        if not equals or not path:
            raise RecipeError(f"{where}: expected option=value, as in epochs=5")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise RecipeError(f"{where}: {text!r} is no value") from None
        set_field(fields, path, value, where=where)
    return parse(GlueOptions, fields, where="--set")
