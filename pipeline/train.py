"""Stage two: trains students from cached targets, with no teacher in memory."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline import runtime
from pipeline.bank import Bank
from pipeline.batches import ViewBatch
from pipeline.contracts import Keys, TargetBatch, TeacherTargets
from pipeline.errors import StudentError
from pipeline.held_out import HeldOut
from pipeline.optimizing import TrainOptions, check_precision, learning_rate
from pipeline.ranks import ALONE, Ranks
from pipeline.trainee import Trainee

EpochListener = Callable[[Trainee, Mapping[str, Any]], None]


class TargetsSource(Protocol):
    """Where batches come from; the order is fixed by the step number alone."""

    steps_per_epoch: int

    def starting_at(self, step: int, stop: int) -> Iterator[ViewBatch]:
        """Yield the batches of steps `step` to `stop` - 1."""

    def keys_before(self, step: int, count: int) -> Keys:
        """Return the targets of the last `count` samples before a step, newest last."""


@dataclass(frozen=True)
class TeacherAnchors:
    """A teacher's text anchors, float32 [A,D], normalised, and its logit scale."""

    anchors_AD: Tensor
    logit_scale: float


def train_students(
    trainees: Sequence[Trainee],
    source: TargetsSource,
    teachers: Sequence[TeacherAnchors],
    spec: TrainOptions,
    *,
    device: torch.device,
    held_out: HeldOut | None = None,
    ranks: Ranks = ALONE,
    on_epoch: EpochListener | None = None,
) -> list[dict[str, Any]]:
    """Train every student from where its run stands, from one stream; save their weights.

    teachers: the first one's anchors, then those of further teachers in the order of the source's.
    Returns each student's last metrics. On a CPU the same bit for bit, interrupted or not, alone or
    beside others, for one number of threads. Raises StudentError, on all ranks alike, if a loss or
    weights stop being finite; the last checkpoints stay.
    """
    check_precision(spec, device)
    for trainee in trainees:
        trainee.restore()
    teachers = [TeacherAnchors(t.anchors_AD.to(device), t.logit_scale) for t in teachers]
    per_epoch = source.steps_per_epoch
    last, step = spec.epochs * per_epoch, min(trainee.step for trainee in trainees)
    bank = Bank(source, max(trainee.bank for trainee in trainees), device)
    with _own_noise(device), runtime.progress("training", last, "steps") as advance:
        advance(step)
        clock = time.monotonic()
        for batch in source.starting_at(step, last):
            waited = time.monotonic() - clock
            due = [trainee for trainee in trainees if trainee.step == step]
            targets = _targets(batch, teachers, bank, step, device)
            with _lost_ranks_named(ranks):
                _take(due, batch, targets, learning_rate(step, last, per_epoch, spec))
            step += 1
            for trainee in due:
                trainee.sums.seconds += time.monotonic() - clock
                trainee.sums.wait_seconds += waited
            if step % per_epoch == 0:
                rate = learning_rate(step - 1, last, per_epoch, spec)
                for trainee in due:
                    _end_epoch(trainee, step // per_epoch - 1, rate, held_out, ranks, on_epoch)
            if step % per_epoch == 0 or _due(step, spec.checkpoint_steps):
                for trainee in due:
                    trainee.save()
            clock = time.monotonic()
            advance(1, due[0].note())
    return [trainee.finish() for trainee in trainees]


def _take(due: Sequence[Trainee], batch: ViewBatch, targets: TargetBatch, rate: float) -> None:
    """Do a step of every student that is due; those of one size see the same tensor."""
    views: dict[int, Tensor] = {}
    for trainee in due:
        if trainee.size not in views:
            views[trainee.size] = batch.views(trainee.device, trainee.size)
        trainee.take(views[trainee.size], targets, rate)


def _end_epoch(
    trainee: Trainee,
    epoch: int,
    rate: float,
    held_out: HeldOut | None,
    ranks: Ranks,
    on_epoch: EpochListener | None,
) -> None:
    """Write the epoch's line, with the scores of the averaged weights on the held-out rows."""
    scores: dict[str, float] = {}
    if held_out is not None and ranks.leads:
        scores = held_out.scores(trainee.student, trainee.ema.state, trainee.size)
    trainee.end_epoch(epoch, rate, scores)
    if on_epoch is not None and ranks.leads:
        on_epoch(trainee, trainee.lines[-1])


def _targets(
    batch: ViewBatch,
    teachers: Sequence[TeacherAnchors],
    bank: Bank,
    step: int,
    device: torch.device,
) -> TargetBatch:
    """Put what the cache says of a batch on the device."""
    keys = Keys(
        batch.keys_GD.to(device, non_blocking=True), batch.key_rows_G.to(device, non_blocking=True)
    )
    earlier = bank.before(step, keys)
    here = slice(batch.first, batch.first + len(batch.labels_B))
    return TargetBatch(
        target_BD=keys.targets_ND[here],
        anchors_AD=teachers[0].anchors_AD,
        rows_B=batch.rows_B,
        labels_B=batch.labels_B.to(device, non_blocking=True),
        keys_GD=keys.targets_ND,
        bank_MD=earlier.targets_ND,
        key_rows_G=keys.rows_N,
        bank_rows_M=earlier.rows_N,
        norms_B=batch.norms_B.to(device, non_blocking=True),
        first=batch.first,
        others=tuple(
            TeacherTargets(target_BD.to(device, non_blocking=True), t.anchors_AD, t.logit_scale)
            for target_BD, t in zip(batch.others, teachers[1:], strict=True)
        ),
        tokens=None if batch.tokens is None else batch.tokens.to(device),
    )


@contextmanager
def _own_noise(device: torch.device) -> Iterator[None]:
    """Leave the global generators as they are; steps seed them as they need."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def _lost_ranks_named(ranks: Ranks) -> Iterator[None]:
    """Tell a rank that is gone from what else torch reports as a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        lost = ("closed by peer", "timed out", "timeout", "reset by peer", "nccl")
        if ranks.size == 1 or not any(word in str(error).lower() for word in lost):
            raise
        raise StudentError(
            f"rank {ranks.rank} lost the others ({str(error).splitlines()[0][:160]}); the last "
            "checkpoint is kept: start all ranks again with --resume"
        ) from None


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
