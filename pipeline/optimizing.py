"""How a student is trained: the options, and the optimiser, rates and precision they stand for."""

import math
from typing import TYPE_CHECKING, Literal

from pipeline.errors import BeamclipError
from pipeline.options import options

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

_AT_LEAST_0 = (
    *("weight_decay", "warmup_epochs", "checkpoint_steps", "restart_epochs", "clip_norm"),
    *("held_out_rows",),
)


@options
class TrainOptions:
    """How a student is trained. The document gives SGD, cosine annealing, EMA 0.99 (section 3.3)
    and batch 256 (ResNet-18) or 512 (ResNet-50); not learning rate, weight decay or warm-up.

    Mixup and CutMix are not offered: a mixed image has no stored target.
    """

    epochs: int
    batch_size: int = 256  # of one step, over all ranks
    seed: int = 0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    # Gradients of the losses over anchors grow with 1 / tau: choose the two together.
    learning_rate: float = 0.05
    momentum: float = 0.9  # of SGD
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW
    epsilon: float = 1e-8  # of AdamW
    weight_decay: float = 1e-4  # not on biases, norms and embeddings
    warmup_epochs: float = 0.0  # linear, from 0
    restart_epochs: float = 0.0  # length of the first cosine, then again (SGDR); 0: one in all
    restart_factor: float = 1.0  # each cosine is so many times as long as the one before
    clip_norm: float = 0.0  # the greatest norm of all gradients together; 0: any
    accumulate: int = 1  # parts that a rank's share of a step is worked off in, to save memory
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the student's forward pass
    channels_last: bool = (
        False  # the colours of a pixel together in memory; faster in half precision
    )
    compile: bool = False  # torch.compile
    ema: float = 0.99
    ema_warm_up: bool = True  # False: Eq. 9 taken literally
    checkpoint_steps: int = 0  # besides the end of every epoch; 0: there alone
    # Scored after every epoch and never trained on: rows of the val split, or without one of train,
    # then at most a twentieth of it. 0: none.
    held_out_rows: int = 1000
    # Shards that are read at a time: the order is of chance within so many of them. 0: over all;
    # null: 0 for files, 16 for an object store's.
    window_shards: int | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.accumulate < 1:
            raise ValueError("epochs, batch_size and accumulate are at least 1")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size is a multiple of accumulate, not {self.batch_size} of "
                f"{self.accumulate}"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs is below epochs, not {self.warmup_epochs}")
        for name in ("learning_rate", "epsilon"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is above 0, not {getattr(self, name)}")
        if self.restart_factor < 1:
            raise ValueError(f"restart_factor is at least 1, not {self.restart_factor}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is between 0 and 2**63 - 1, not {self.seed}")
        for name, value in (
            ("ema", self.ema),
            ("momentum", self.momentum),
            *(("betas", beta) for beta in self.betas),
        ):
            if not 0 <= value < 1:
                raise ValueError(f"{name} is at least 0 and below 1, not {value}")
        for name in (*_AT_LEAST_0, "window_shards"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} is at least 0, not {getattr(self, name)}")


def learning_rate(step: int, last: int, per_epoch: int, spec: TrainOptions) -> float:
    """Return the rate of a step: linear warm-up, then cosines to 0 (SGDR of Loshchilov, Hutter)."""
    warm = spec.warmup_epochs * per_epoch
    if step < warm:
        return spec.learning_rate * min(1.0, (step + 1) / warm)
    done, length = step - warm, max(1.0, last - warm)
    if spec.restart_epochs:
        length = spec.restart_epochs * per_epoch
        while done >= length:
            done, length = done - length, length * spec.restart_factor
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * (done / length)))


def build_optimizer(model: "nn.Module", spec: TrainOptions) -> "torch.optim.Optimizer":
    """Return the optimiser; biases, norms and embeddings do not decay.

    They are what has one dimension, what nn.Embedding holds, and what a network names in
    `no_weight_decay()`, as timm's do.
    """
    import torch

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    spared = {name for name, p in trained.items() if p.ndim <= 1} | set(_embeddings(model))
    groups = [
        {
            "params": [p for name, p in trained.items() if name not in spared],
            "weight_decay": spec.weight_decay,
        },
        {"params": [p for name, p in trained.items() if name in spared], "weight_decay": 0.0},
    ]
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=spec.learning_rate, betas=spec.betas, eps=spec.epsilon)
    return torch.optim.SGD(groups, lr=spec.learning_rate, momentum=spec.momentum)


def _embeddings(model: "nn.Module") -> "Iterator[str]":
    """Yield the names of a network's embeddings: of positions, of tokens, of classes."""
    from torch import nn

    for prefix, module in model.named_modules():
        names = {"weight"} if isinstance(module, nn.Embedding) else set()
        if callable(listed := getattr(module, "no_weight_decay", None)):
            names |= set(listed())
        for name in names:
            yield f"{prefix}.{name}" if prefix else name


def check_precision(spec: TrainOptions, device: "torch.device") -> None:
    """Raise BeamclipError if the device does not train in this precision."""
    if spec.precision == "fp16" and device.type != "cuda":
        raise BeamclipError(
            f"training.precision fp16 wants a CUDA device, not {device.type}: take bf16 or fp32"
        )


def autocast(spec: TrainOptions, device: "torch.device") -> "torch.autocast":
    """Return the context in which a student works in the options' precision."""
    import torch

    dtype = torch.float16 if spec.precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=spec.precision != "fp32")
