"""Stage two: trains one student from cached targets, with no teacher in memory."""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline import runtime
from pipeline.batches import ViewBatch
from pipeline.contracts import TargetBatch
from pipeline.ema import Ema
from pipeline.errors import StudentError
from pipeline.losses import Term
from pipeline.options import options
from pipeline.rundir import RunDir
from pipeline.schedule import philox_words
from pipeline.students import Student

_log = logging.getLogger(__name__)


@options
class TrainOptions:
    """How a student is trained. The document gives SGD, cosine annealing, EMA 0.99 (section 3.3)
    and batch 256 (ResNet-18) or 512 (ResNet-50); not learning rate, weight decay or warm-up.

    Mixup and CutMix are not offered: a mixed image has no stored target.
    """

    epochs: int
    batch_size: int = 256
    seed: int = 0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    # Gradients of the losses over anchors grow with 1 / tau: choose the two together.
    learning_rate: float = 0.05
    momentum: float = 0.9  # of SGD
    weight_decay: float = 1e-4  # not on biases and norms, which have one dimension
    warmup_epochs: float = 0.0  # linear, from 0
    ema: float = 0.99
    ema_warm_up: bool = True  # False: Eq. 9 taken literally
    checkpoint_steps: int = 0  # besides the end of every epoch; 0: there alone

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError("epochs and batch_size are at least 1")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs is below epochs, not {self.warmup_epochs}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is above 0, not {self.learning_rate}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is between 0 and 2**63 - 1, not {self.seed}")
        for field_name in ("ema", "momentum"):
            value = getattr(self, field_name)
            if not 0 <= value < 1:
                raise ValueError(f"{field_name} is at least 0 and below 1, not {value}")
        for field_name in ("weight_decay", "warmup_epochs", "checkpoint_steps"):
            value = getattr(self, field_name)
            if value < 0:
                raise ValueError(f"{field_name} is at least 0, not {value}")


class TargetsSource(Protocol):
    """Where batches come from; the order is fixed by the step number alone."""

    steps_per_epoch: int

    def starting_at(self, step: int, stop: int) -> Iterator[ViewBatch]:
        """Yield the batches of steps `step` to `stop` - 1."""


@dataclass
class _Sums:
    """What an epoch's line of metrics is made of, so far."""

    samples: int = 0
    values: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    wait_seconds: float = 0.0

    def add(self, losses: Mapping[str, float], samples: int) -> None:
        self.samples += samples
        for name, value in losses.items():
            self.values[name] = self.values.get(name, 0.0) + value * samples

    def line(self, epoch: int, step: int, learning_rate: float) -> dict[str, Any]:
        means = {name: value / self.samples for name, value in self.values.items()}
        return {
            "epoch": epoch,
            "step": step,
            **means,
            "learning_rate": learning_rate,
            "images_per_second": round(self.samples / max(self.seconds, 1e-9), 1),
            "data_wait_share": round(self.wait_seconds / max(self.seconds, 1e-9), 4),
        }


def train_student(
    run: RunDir,
    student: Student,
    source: TargetsSource,
    anchors_AD: Tensor,
    terms: Sequence[Term],
    spec: TrainOptions,
    *,
    device: torch.device,
) -> dict[str, Any]:
    """Train from where the run's newest checkpoint stands, and save the student's weights.

    anchors_AD: normalised text anchors, float32. Returns the last epoch's metrics. Bit for bit the
    same on a CPU, interrupted or not, for one number of threads. Raises StudentError if the loss or
    the weights stop being finite; the last checkpoint stays.
    """
    student.to(device).train()
    state = _State(student, spec)
    state.restore(run.load_checkpoint(), where=run.path)
    anchors_AD = anchors_AD.to(device)
    last = spec.epochs * source.steps_per_epoch
    per_epoch = source.steps_per_epoch
    forked = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=forked),
        runtime.progress("training", last, "steps") as advance,
    ):
        advance(state.step)
        for batch, waited in _timed(source.starting_at(state.step, last)):
            began = time.monotonic()
            rate = learning_rate(state.step, last, per_epoch, spec)
            torch.manual_seed(_noise_seed(spec.seed, state.step))
            losses = _step(student, state, batch, anchors_AD, terms, rate, device)
            state.step += 1
            state.sums.add(losses, len(batch.rows_B))
            state.sums.wait_seconds += waited
            state.sums.seconds += waited + time.monotonic() - began
            if state.step % per_epoch == 0:
                state.end_epoch(state.step // per_epoch - 1, rate)
            if state.step % per_epoch == 0 or _due(state.step, spec.checkpoint_steps):
                state.check_finite()
                run.write_metrics(state.lines)
                run.save_checkpoint(state.step, state.saved())
            advance(1, f"loss {losses['loss']:.4f}")
    run.save_weights({"student": state.ema.state, "student_raw": student.state_dict()})
    return dict(state.lines[-1])


def learning_rate(step: int, last: int, per_epoch: int, spec: TrainOptions) -> float:
    """Return the rate of a step: linear warm-up, then one cosine to 0 (SGDR without restarts)."""
    warm = spec.warmup_epochs * per_epoch
    if step < warm:
        return spec.learning_rate * min(1.0, (step + 1) / warm)
    share = (step - warm) / max(1, last - warm)
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


class _State:
    """All that a checkpoint holds: going on from it equals never having stopped."""

    def __init__(self, student: Student, spec: TrainOptions) -> None:
        self.student = student
        self.optimizer = _optimizer(student, spec)
        self.ema = Ema(student, spec.ema, warm_up=spec.ema_warm_up)
        self.step = 0
        self.sums = _Sums()
        self.lines: list[dict[str, Any]] = []

    def end_epoch(self, epoch: int, rate: float) -> None:
        self.lines.append(self.sums.line(epoch, self.step, rate))
        self.sums = _Sums()

    def check_finite(self) -> None:
        """Raise StudentError if the last step blew up: its loss was of the weights before it."""
        values = self.student.state_dict().values()
        if not all(bool(v.isfinite().all()) for v in values if v.is_floating_point()):
            raise StudentError(
                f"the weights are not finite after step {self.step - 1}: lower "
                "training.learning_rate; the last checkpoint is kept"
            )

    def saved(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "student": self.student.state_dict(),
            "ema": self.ema.state,
            "ema_updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "threads": torch.get_num_threads(),
            "sums": dict(vars(self.sums)),
            "lines": self.lines,
        }

    def restore(self, saved: Mapping[str, Any] | None, *, where: object) -> None:
        if saved is None:
            return
        try:
            self._restore(saved)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"[:200]
            raise StudentError(
                f"the checkpoint in {where} is not of this run ({reason}): name another --run"
            ) from None

    def _restore(self, saved: Mapping[str, Any]) -> None:
        self.step = int(saved["step"])
        self.student.load_state_dict(saved["student"])
        self.ema.load(saved["ema"], int(saved["ema_updates"]))
        self.optimizer.load_state_dict(saved["optimizer"])
        self.sums = _Sums(**saved["sums"])
        self.lines = list(saved["lines"])
        if saved["threads"] != torch.get_num_threads():
            _log.warning(
                "the run was begun with %d threads and goes on with %d: the last bits may differ",
                saved["threads"],
                torch.get_num_threads(),
            )


def _optimizer(student: Student, spec: TrainOptions) -> torch.optim.Optimizer:
    parameters = [p for p in student.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=spec.learning_rate)
    return torch.optim.SGD(groups, lr=spec.learning_rate, momentum=spec.momentum)


def _step(
    student: Student,
    state: _State,
    batch: ViewBatch,
    anchors_AD: Tensor,
    terms: Sequence[Term],
    rate: float,
    device: torch.device,
) -> dict[str, float]:
    """Do one optimiser step; return the batch's mean loss and its terms before weighting."""
    target_BD = batch.target_BD.to(device, non_blocking=True)
    targets = TargetBatch(
        target_BD=target_BD,
        anchors_AD=anchors_AD,
        rows_B=batch.rows_B,
        labels_B=batch.labels_B,
        keys_GD=target_BD,
        bank_MD=target_BD[:0],
    )
    try:
        outputs = student(batch.views(device))
    except ValueError as error:  # of batch norm, which learns nothing from one value per channel
        raise StudentError(
            f"the student cannot learn from a batch of {len(batch.rows_B)} ({error}): raise "
            "training.batch_size, or give more images"
        ) from None
    means = {term.name: term(outputs, targets).mean() for term in terms}
    loss = torch.stack([term.spec.weight * means[term.name] for term in terms]).sum()
    values = {"loss": float(loss.detach())}
    if not math.isfinite(values["loss"]):
        raise StudentError(
            f"the loss is {values['loss']} at step {state.step}: lower training.learning_rate (or "
            "raise tau); the last checkpoint is kept"
        )
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    state.ema.update(student)
    return values | {name: float(mean.detach()) for name, mean in means.items()}


def _noise_seed(seed: int, step: int) -> int:
    """Decide what a student's own randomness (dropout) starts from in a step, and by that alone."""
    return int(philox_words(np.array([seed, 1], np.uint64), step, 1)[0])


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _timed(batches: Iterator[ViewBatch]) -> Iterator[tuple[ViewBatch, float]]:
    """Yield each batch with the seconds that it was waited for."""
    began = time.monotonic()
    for batch in batches:
        yield batch, time.monotonic() - began
        began = time.monotonic()
