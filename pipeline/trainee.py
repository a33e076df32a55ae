"""One student in training: what a step does to it, and all that a checkpoint of it holds.

Shape letters: B batch, A anchors, D teacher dimension, S side in pixels.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.contracts import TargetBatch
from pipeline.ema import Ema
from pipeline.errors import StudentError
from pipeline.joint import Joint, over_ranks, unsynchronised
from pipeline.losses import LossSum
from pipeline.optimizing import TrainOptions, autocast, build_optimizer
from pipeline.order import noise_seed
from pipeline.ranks import ALONE, Ranks
from pipeline.rundir import RunDir
from pipeline.students import AnyStudent
from pipeline.transfers import Arriving

_log = logging.getLogger(__name__)


@dataclass
class Sums:
    """What an epoch's line of metrics is made of, so far."""

    samples: int = 0
    values: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    wait_seconds: float = 0.0

    def add(self, losses: Mapping[str, float], samples: int) -> None:
        """Count `samples` samples with these mean losses."""
        self.samples += samples
        for name, value in losses.items():
            self.values[name] = self.values.get(name, 0.0) + value * samples

    def line(self, epoch: int, step: int, learning_rate: float) -> dict[str, Any]:
        """Return the epoch's metrics; `seconds`: of its steps, waiting for data among them."""
        means = {name: value / self.samples for name, value in self.values.items()}
        return {
            "epoch": epoch,
            "step": step,
            **means,
            "learning_rate": learning_rate,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.samples / max(self.seconds, 1e-9), 1),
            "data_wait_share": round(self.wait_seconds / max(self.seconds, 1e-9), 4),
        }


class Trainee:
    """A student with its losses, optimiser and average, on one device; `step` counts steps taken.

    size: side S of the views that it sees. Weights stay the same on all ranks.
    """

    def __init__(
        self,
        run: RunDir,
        student: AnyStudent,
        losses: LossSum,
        spec: TrainOptions,
        *,
        size: int,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        self.run, self.spec, self.size, self.device = run, spec, size, device
        self._ranks = ranks
        self.student, self._losses = student.to(device).train(), losses.to(device)
        if spec.channels_last:
            student.memory_format = torch.channels_last
            student.to(memory_format=torch.channels_last)
        if spec.compile:
            student.compile()
        self._joint = Joint(student, losses)
        self._optimizer = build_optimizer(self._joint, spec)
        self._scaler = torch.amp.GradScaler(device.type, enabled=spec.precision == "fp16")
        self.ema = Ema(student, spec.ema, warm_up=spec.ema_warm_up)
        self._forward = over_ranks(self._joint, ranks, device)
        self.step = 0
        self.sums = Sums()
        self.lines: list[dict[str, Any]] = []
        self._pending: _Losses | None = None
        self._names: tuple[str, ...] = ()
        self._loss = math.nan

    @property
    def bank(self) -> int:
        """How many earlier targets the losses ask for."""
        return self._losses.bank

    def take(self, views_B3SS: Tensor, targets: TargetBatch, rate: float) -> None:
        """Do one optimiser step on this rank's share of a batch.

        Raises StudentError if the loss of the step before was not finite: it is looked at when this
        step has been begun, so that a GPU need not wait.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(noise_seed(self.spec.seed, self.step, self._ranks.rank))
        values = self._backward(views_B3SS, targets)
        if self.spec.clip_norm:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._joint.parameters(), self.spec.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.ema.update(self.student)
        before = self._pending
        self._pending = _Losses(Arriving(self._ranks.mean(values)), len(targets.keys_GD), self.step)
        self.step += 1
        self._look_at(before)

    def _backward(self, views_B3SS: Tensor, targets: TargetBatch) -> Tensor:
        """Add up the gradients of the batch's parts; return the loss and its terms' means."""
        parts = self.spec.accumulate
        share = len(views_B3SS) // parts
        if share * parts != len(views_B3SS):
            raise StudentError(
                f"a rank's {len(views_B3SS)} samples of a step do not divide into "
                f"training.accumulate {parts} parts: change one of them"
            )
        values: Tensor | None = None
        for part in range(parts):
            here = slice(part * share, (part + 1) * share)
            with unsynchronised(self._forward, part < parts - 1):
                loss, means = self._losses_of(views_B3SS[here], _cut(targets, here))
                self._scaler.scale(loss / parts).backward()  # type: ignore[no-untyped-call]
            found = torch.stack([loss, *means.values()]).detach() / parts
            values = found if values is None else values + found
            self._names = tuple(means)
        assert values is not None
        return values

    def _losses_of(
        self, views_B3SS: Tensor, targets: TargetBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        try:
            with autocast(self.spec, self.device):
                found: tuple[Tensor, dict[str, Tensor]] = self._forward(views_B3SS, targets)
        except ValueError as error:  # of batch norm, which learns nothing from one value a channel
            raise StudentError(
                f"the student cannot learn from a batch of {len(views_B3SS)} ({error}): raise "
                "training.batch_size, or give more images"
            ) from None
        return found

    def note(self) -> str:
        """Say how the training stands, by the last loss that was looked at."""
        return f"loss {self._loss:.4f}"

    def collect(self) -> None:
        """Add the last step's losses to the epoch's, unless that is done.

        Raises StudentError if the loss is not finite, on all ranks alike.
        """
        before, self._pending = self._pending, None
        self._look_at(before)

    def _look_at(self, losses: "_Losses | None") -> None:
        if losses is None:
            return
        loss, *means = losses.arriving.wait().tolist()
        if not math.isfinite(loss):
            raise StudentError(
                f"the loss is {loss} at step {losses.step}: lower training.learning_rate (or "
                "raise tau); the last checkpoint is kept"
            )
        named = dict(zip(self._names, means, strict=True))
        self.sums.add({"loss": loss} | named, losses.samples)
        self._loss = float(loss)

    def end_epoch(self, epoch: int, rate: float, scores: Mapping[str, float]) -> None:
        """Turn what was summed up into the epoch's line of metrics."""
        self.collect()
        self.lines.append(self.sums.line(epoch, self.step, rate) | dict(scores))
        self.sums = Sums()

    def save(self) -> None:
        """Write metrics and checkpoint, unless the last step blew up (then StudentError)."""
        self.collect()
        values = self.student.state_dict().values()
        if not all(bool(v.isfinite().all()) for v in values if v.is_floating_point()):
            raise StudentError(
                f"the weights are not finite after step {self.step - 1}: lower "
                "training.learning_rate; the last checkpoint is kept"
            )
        if self._ranks.leads:
            self.run.write_metrics(self.lines)
            self.run.save_checkpoint(self.step, self._saved())

    def finish(self) -> dict[str, Any]:
        """Write the student's weights, averaged and raw; return the last line of metrics."""
        if self._ranks.leads:
            states = {"student": self.ema.state, "student_raw": self.student.state_dict()}
            self.run.save_weights(states)
        return dict(self.lines[-1])

    def restore(self) -> None:
        """Go on from the run's newest checkpoint, if it has one; raises StudentError, RunError."""
        saved = self.run.load_checkpoint()
        if saved is not None:
            try:
                self._restore(saved)
            except (KeyError, RuntimeError, TypeError, ValueError) as error:
                reason = f"{type(error).__name__}: {error}"[:200]
                raise StudentError(
                    f"the checkpoint in {self.run.path} is not of this run ({reason}): name "
                    "another --run"
                ) from None
        if not self._ranks.agree(self.step):
            raise StudentError(
                f"{self.run.path} is at another step for another rank: all ranks want one folder"
            )

    def _saved(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "student": self.student.state_dict(),
            "losses": self._losses.state_dict(),
            "ema": self.ema.state,
            "ema_updates": self.ema.updates,
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "threads": torch.get_num_threads(),
            "sums": dict(vars(self.sums)),
            "lines": self.lines,
        }

    def _restore(self, saved: Mapping[str, Any]) -> None:
        self.step = int(saved["step"])
        self.student.load_state_dict(saved["student"])
        self._losses.load_state_dict(saved["losses"])
        self.ema.load(saved["ema"], int(saved["ema_updates"]))
        self._optimizer.load_state_dict(saved["optimizer"])
        if saved["scaler"]:
            self._scaler.load_state_dict(saved["scaler"])
        self.sums = Sums(**saved["sums"])
        self.lines = list(saved["lines"])
        if saved["threads"] != torch.get_num_threads():
            _log.warning(
                "the run was begun with %d threads and goes on with %d: the last bits may differ",
                saved["threads"],
                torch.get_num_threads(),
            )


@dataclass(frozen=True)
class _Losses:
    """A step's loss and its terms' means, maybe on their way from the device."""

    arriving: Arriving
    samples: int
    step: int


def _cut(targets: TargetBatch, here: slice) -> TargetBatch:
    """Return what is said of a part of the batch; keys and bank stay those of the whole step."""
    return replace(
        targets,
        target_BD=targets.target_BD[here],
        rows_B=targets.rows_B[here],
        labels_B=targets.labels_B[here],
        norms_B=targets.norms_B[here],
        first=targets.first + here.start,
        others=tuple(replace(o, target_BD=o.target_BD[here]) for o in targets.others),
        tokens=None if targets.tokens is None else targets.tokens.part(here),
    )
