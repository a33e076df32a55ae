"""Pretrains a backbone by SimCLR on the images of shards: no labels, no teacher, no cache.

What it leaves is a folder that serves as student.init (the document's column "SSL PT", Table 7).
"""

import json
import logging
import math
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import __version__, durable, runtime
from pipeline.checkpoints import BACKBONE, tensors_sha256
from pipeline.errors import RunError, StudentError
from pipeline.options import differences, options, to_mapping
from pipeline.order import noise_seed
from pipeline.pairs import PairBatch, Pairs
from pipeline.rundir import RunDir
from pipeline.schedule import Schedule
from pipeline.shards import Shard
from pipeline.simclr import SIMCLR, Contrasted, nt_xent
from pipeline.students import Stem, StudentOptions

_log = logging.getLogger(__name__)
REPORT = "pretrain.json"
VERSION = 1  # of the report


@options
class PretrainOptions:
    """What is pretrained, and how: everything that changes a number.

    Temperature is SimCLR's for CIFAR-10 (appendix B.9). SGD, its rate, momentum and decay are those
    of lightly's CIFAR-10 benchmark, for the batches of one machine; SimCLR has LARS for 4,096.
    """

    model: str = "rn18"
    stem: Stem = "imagenet"
    input_px: int = 224
    schedule: Schedule = SIMCLR
    epochs: int = 100
    batch_size: int = 256  # images, each seen twice
    learning_rate: float | None = None  # of the first step; by default 0.06 per 128 images
    momentum: float = 0.9
    weight_decay: float = 5e-4
    temperature: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.input_px < 1:
            raise ValueError("epochs and input_px are at least 1")
        if self.batch_size < 2:
            raise ValueError(f"batch_size is at least 2, for contrast, not {self.batch_size}")
        if self.temperature <= 0 or self.rate <= 0:
            raise ValueError("temperature and learning_rate are above 0")

    @property
    def rate(self) -> float:
        """The learning rate of the first step; it falls to 0 by a cosine."""
        default = 0.06 * self.batch_size / 128
        return default if self.learning_rate is None else self.learning_rate


def pretrain(
    shards: Sequence[Shard], folder: Path, spec: PretrainOptions, *, workers: int, device: str
) -> dict[str, Any]:
    """Pretrain on the train shards; leave backbone.safetensors and pretrain.json in a folder.

    Goes on after the last whole epoch if the folder holds a beginning of the same work, bit for bit
    on a CPU; what is finished is left as it is. Returns the content of pretrain.json. Raises
    LibraryError without the extra, RunError for a folder of other work, StudentError, ShardError.
    """
    contrast = nt_xent(spec.temperature)
    where = runtime.pick_device(device)
    _check_folder(folder)
    pairs = Pairs(
        shards,
        spec.schedule,
        input_px=spec.input_px,
        batch_size=spec.batch_size,
        seed=spec.seed,
        workers=workers,
    )
    made_from = {
        "options": to_mapping(spec),
        "shards": {s.name: s.size_bytes for s in shards if s.split == "train"},
        "images": len(pairs),
    }
    work = _Work(spec, pairs, contrast, where)
    run = RunDir(folder)
    with run.exclusive():
        if (folder / BACKBONE).exists():
            return _finished(folder, made_from)
        for left_behind in folder.glob(".*.tmp"):  # by a process that was killed
            left_behind.unlink()
        if begun := run.load_checkpoint():
            _check_same(folder, begun["made_from"], made_from)
            work.restore(begun)
        work.train(lambda: run.save_checkpoint(work.step, work.saved() | {"made_from": made_from}))
        return _publish(work, folder, made_from)


class _Work:
    """What moves in pretraining: the model, its optimizer, the epochs so far, images not read."""

    def __init__(
        self,
        spec: PretrainOptions,
        pairs: Pairs,
        contrast: Callable[[Tensor], Tensor],
        device: torch.device,
    ) -> None:
        self.spec, self.pairs, self.contrast, self.device = spec, pairs, contrast, device
        student = StudentOptions(model=spec.model, stem=spec.stem)
        self.model = Contrasted(student, input_px=spec.input_px, seed=spec.seed).to(device).train()
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=spec.rate,
            momentum=spec.momentum,
            weight_decay=spec.weight_decay,
        )
        self.step = 0
        self.last = spec.epochs * pairs.steps_per_epoch
        self.epochs: list[dict[str, float]] = []
        self.unread: dict[str, str] = {}

    def train(self, save: Callable[[], None]) -> None:
        """Train what is left; save after each epoch."""
        losses: list[tuple[float, int]] = []
        began = time.monotonic()
        forked = [self.device] if self.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=forked),
            runtime.progress("pretraining", self.last, "steps") as advance,
        ):
            advance(self.step)
            for batch in self.pairs.starting_at(self.step, self.last):
                self._note(batch.unread)
                if len(batch) > 1:  # one image alone has nothing to be told from
                    losses.append((self._step(batch), len(batch)))
                self.step += 1
                if self.step % self.pairs.steps_per_epoch == 0:
                    self._end_epoch(losses, time.monotonic() - began)
                    save()
                    losses, began = [], time.monotonic()
                advance(1, f"loss {self.epochs[-1]['loss']:.4f}" if self.epochs else "")

    def saved(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epochs": self.epochs,
            "unread": self.unread,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        self.step = int(saved["step"])
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.epochs, self.unread = list(saved["epochs"]), dict(saved["unread"])

    def _step(self, batch: PairBatch) -> float:
        torch.manual_seed(noise_seed(self.spec.seed, self.step))
        loss = self.contrast(self.model(batch.views(self.device)))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise StudentError(
                f"the loss is {value} at step {self.step}: lower --learning-rate; the last whole "
                "epoch is kept"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.spec.rate * (1 + math.cos(math.pi * self.step / self.last)) / 2
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return value

    def _note(self, unread: Iterable[tuple[str, str]]) -> None:
        for image, reason in unread:
            if image not in self.unread:
                _log.warning("left out %s: %s", image, reason)
            self.unread[image] = reason

    def _end_epoch(self, losses: Sequence[tuple[float, int]], seconds: float) -> None:
        images = sum(count for _, count in losses)
        if images == 0:
            raise StudentError("no two images of a batch could be decoded: see the warnings")
        mean = sum(loss * count for loss, count in losses) / images
        speed = round(images / max(seconds, 1e-9), 1)
        self.epochs.append({"loss": mean, "images_per_second": speed})


def _check_folder(folder: Path) -> None:
    """Raise RunError for a folder that holds other files, before anything is written there."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    ours = {name for name in names if name.startswith((".", "checkpoint-"))} | {REPORT, BACKBONE}
    if others := sorted(names - ours):
        raise RunError(f"{folder} holds other files ({', '.join(others[:5])}): name another --to")


def _check_same(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    if changed := differences(old, new):
        rows = [f"  {field}: it has {was!r}, asked for {now!r}" for field, was, now in changed]
        head = f"{folder} holds other work; name another --to, or remove it"
        raise RunError("\n".join([head, *rows]))


def _finished(folder: Path, made_from: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report of finished work; raises RunError if it is other work, or damaged."""
    try:
        report = dict(json.loads((folder / REPORT).read_text(encoding="utf-8")))
        old = dict(report["made_from"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{folder / REPORT} is damaged or gone ({error!r}): remove the folder and run again"
        ) from None
    _check_same(folder, old, made_from)
    return report


def _publish(work: _Work, folder: Path, made_from: Mapping[str, Any]) -> dict[str, Any]:
    """Write the report, then the weights, whose being there says that all is."""
    from safetensors.torch import save

    state = work.model.student.backbone.state_dict()
    tensors = {name: value.contiguous().cpu() for name, value in state.items()}
    report = {
        "version": VERSION,
        "made_from": made_from,
        "loss": work.epochs[-1]["loss"],
        "epochs": work.epochs,
        "left_out": work.unread,
        "tensors_sha256": tensors_sha256(tensors),
        "made_with": {
            "beamclip": __version__,
            "commit": runtime.git_commit(),
            "versions": runtime.versions(),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        },
    }
    durable.write_json(folder / REPORT, report)
    with durable.replacing(folder / BACKBONE) as temporary:
        temporary.write_bytes(save(tensors))
    for checkpoint in folder.glob("checkpoint-*.pt"):
        checkpoint.unlink()
    return report
