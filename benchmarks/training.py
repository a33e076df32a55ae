"""Stage two as a whole: beside bare steps, beside online distillation, several students at once.

ResNet-18 at 96 px from 500x375 JPEGs. What is possible on cores that loading and training share is
the time of bare steps on tensors at hand plus that of loading, each alone on all cores.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

from benchmarks.inputs import PLAIN, cached_photos, cached_squares, photo_recipe, random_teacher
from benchmarks.measure import Row, in_turn, row
from pipeline.batches import ViewBatch
from pipeline.cache.reader import TargetCache
from pipeline.losses import LossSum, Sizes, resolve_tau
from pipeline.online import live_targets
from pipeline.recipe import Recipe, recipe_from
from pipeline.rundir import RunDir
from pipeline.schedule import Schedule
from pipeline.shards import find_shards
from pipeline.stage_two import Loading, Setting, open_setting, train
from pipeline.students import build_student
from pipeline.train import TargetsSource, TeacherAnchors, train_students
from pipeline.trainee import Trainee

PHOTOS, PX, BATCH = 512, 96, 64
# Small enough for loading to be a third of a run; of images that lie at four times their side.
THREE = ("test_resnet", "test_vit", "test_efficientnet")


class Bench:
    """A cache of photos by one teacher, and trainings from it; the last epoch is what counts."""

    def __init__(
        self,
        folder: Path,
        teacher: str | None,
        photos: int,
        *,
        schedule: Schedule = PLAIN,
        px: int = PX,
        device: str = "cpu",
        **training: Any,
    ) -> None:
        self._folder, self._px, self._training = folder, px, training
        self._schedule, self._device = schedule, torch.device(device)
        self.cache, shards = cached_photos(folder, photos, schedule, teacher=teacher)
        self._shards = find_shards([str(shards)])
        self._teacher = teacher or f"local-dir:{folder / 'teacher' / 'model'}"

    def recipe(self, model: str) -> Recipe:
        """Return the recipe of a training of this student."""
        fields = photo_recipe(self._teacher, self._schedule, 1)
        fields["training"] |= self._training
        fields["student"] = {"model": model, "input_px": self._px}
        return recipe_from(fields, where="benchmark")

    def seconds(self, *models: str, online: bool = False, workers: int = 1) -> float:
        """Return seconds per image of training these students from one stream."""
        runs = {self._folder / "runs" / model: self.recipe(model) for model in models}
        shutil.rmtree(self._folder / "runs", ignore_errors=True)
        lines = train(
            next(iter(runs.values())),
            [self.cache],
            self._shards,
            runs,
            resume=False,
            device=str(self._device),
            loading=Loading(workers=workers),
            live=live_targets(str(self._device)) if online else None,
        )
        line = next(iter(lines.values()))
        self.wait = float(line["data_wait_share"])
        return 1 / float(line["images_per_second"])

    def setting(self, workers: int) -> Setting:
        """Return what a training of a ResNet-18 would read from."""
        recipe = self.recipe("resnet18")
        loading = Loading(workers=workers)
        return open_setting(
            recipe, [self.cache], self._shards, [recipe], None, self._device, loading
        )

    def loading(self, workers: int) -> float:
        """Return seconds per image of the loader alone."""
        source = self.setting(workers).source
        batches = source.starting_at(0, max(12, 2 * source.steps_per_epoch))
        for _ in islice(batches, 2):
            pass
        began = perf_counter()
        count = sum(len(batch.rows_B) for batch in batches)
        return (perf_counter() - began) / count

    def bare(self, model: str = "resnet18") -> float:
        """Return seconds per image of the same steps on one batch that is at hand."""
        recipe, setting = self.recipe(model), self.setting(0)
        cache = TargetCache.open(self.cache)
        student = build_student(recipe.student, dim=cache.dim, input_px=self._px, seed=0)
        losses = LossSum(
            resolve_tau(recipe.terms(), cache.logit_scale),
            Sizes(student.num_features, cache.dim, num_anchors=10, num_classes=0),
        )
        anchors = TeacherAnchors(
            torch.from_numpy(setting.teachers[0].embeddings_AD), cache.logit_scale
        )
        shutil.rmtree(self._folder / "bare", ignore_errors=True)
        run = RunDir(self._folder / "bare")
        run.path.mkdir()
        trainee = Trainee(run, student, losses, recipe.training, size=self._px, device=self._device)
        source = _AtHand(setting.source, self._device)
        (line,) = train_students([trainee], source, [anchors], recipe.training, device=self._device)
        return 1 / float(line["images_per_second"])


class _AtHand:
    """One batch of a source, on the device, over and over."""

    def __init__(self, source: TargetsSource, device: torch.device) -> None:
        (batch,) = islice(source.starting_at(0, 1), 1)
        self._batch = replace(
            batch,
            geometry={size: views.to(device) for size, views in batch.geometry.items()},
            keys_GD=batch.keys_GD.to(device),
        )
        self.steps_per_epoch = source.steps_per_epoch
        self.keys_before = source.keys_before

    def starting_at(self, step: int, stop: int) -> Iterator[ViewBatch]:
        yield from (self._batch for _ in range(step, stop))


def rows() -> list[Row]:
    """Measure."""
    with TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        found = _beside_bare_steps(Bench(Path(folder) / "tiny", None, PHOTOS))
        teacher = random_teacher(Path(folder) / "vit", "ViT-B-32")
        found += _beside_online(Bench(Path(folder) / "vit-cache", teacher, 256))
        return found + _memory(Path(folder))


def _beside_bare_steps(bench: Bench) -> list[Row]:
    cores = len(os.sched_getaffinity(0))
    waits: list[float] = []

    def ours() -> float:
        seconds = bench.seconds("resnet18")
        waits.append(100 * bench.wait)
        return seconds

    full, bare, alone = in_turn(ours, bench.bare, lambda: bench.loading(cores))
    possible = [step + load for step, load in zip(bare, alone, strict=True)]
    three, apart, load = in_turn(
        lambda: bench.seconds(*THREE),
        lambda: sum(bench.seconds(model) for model in THREE),
        lambda: 3 * bench.loading(cores),
    )
    note = f"ResNet-18, {PX} px, batch {BATCH}, {cores} cores shared with one loader"
    return [
        row("training from the cache: images/s", [1 / s for s in full], "/s", note=note),
        row("  bare steps on tensors at hand: images/s", [1 / s for s in bare], "/s"),
        row(
            "  training / what steps plus loading leave possible",
            [p / f for p, f in zip(possible, full, strict=True)],
            "x",
            ">= 0.95",
        ),
        row("  share of time that training waits for data", waits, "%"),
        row(
            "three students from one stream / three runs",
            [a / t for a, t in zip(apart, three, strict=True)],
            "x",
            ">= 1.2",
            ", ".join(THREE),
        ),
        row(
            "  loading's share of the three runs",
            [100 * part / whole for part, whole in zip(load, apart, strict=True)],
            "%",
            ">= 33 for it to count",
        ),
    ]


def _beside_online(bench: Bench) -> list[Row]:
    """T: a teacher's forward at 224 px; S: what the student takes from the cache."""
    cached, online = in_turn(
        lambda: bench.seconds("resnet18"), lambda: bench.seconds("resnet18", online=True), rounds=3
    )
    teacher = [_forward(bench) for _ in range(3)]
    wanted = [
        (online_s / cached_s) / ((t + s) / s)
        for online_s, cached_s, t, s in zip(online, cached, teacher, cached, strict=True)
    ]
    note = "ViT-B-32 at 224 px with random weights, ResNet-18 at 96 px"
    return [
        row(
            "an epoch online / from the cache",
            [o / c for o, c in zip(online, cached, strict=True)],
            "x",
            note=note,
        ),
        row("  that / ((T + S) / S)", wanted, "x", ">= 0.95"),
    ]


def _forward(bench: Bench) -> float:
    """Return seconds per image of the teacher alone."""
    from pipeline.audit.live import live_teacher, recorded_options
    from pipeline.cache.reader import read_manifest

    manifest = read_manifest(bench.cache)
    spec = recorded_options(bench.cache, manifest).teacher
    teacher = live_teacher(bench.cache, manifest, spec, "cpu")
    views = torch.randint(0, 256, (BATCH, 3, 224, 224), dtype=torch.uint8)
    began = perf_counter()
    teacher.embed_images(views)
    return (perf_counter() - began) / BATCH


_PEAK = r"""
import re, sys
from pathlib import Path
from pipeline.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert not stop.code, stop.code
status = Path("/proc/self/status").read_text()  # getrusage would tell the parent's, if greater
print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)
"""


def _memory(folder: Path) -> list[Row]:
    """Measure the peak of training an epoch of 1,000, 10,000 and 100,000 rows."""
    peaks = {}
    for count in (1000, 10_000, 100_000):
        cache, shards, recipe = cached_squares(folder / f"rows-{count}", count)
        command = [sys.executable, "-c", _PEAK, "train-student", "--cache", str(cache)]
        command += ["--shards", str(shards), "--recipe", str(recipe), "--device", "cpu"]
        command += ["--model", "test_resnet", "--run", str(folder / f"run-{count}")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peaks[count] = float(done.stdout.splitlines()[-1])
    note = "32 px, D = 64; the memory map's pages are counted too"
    return [
        row(f"peak memory of training on {count:,} rows", [peak], "MiB", note=note)
        for count, peak in peaks.items()
    ] + [
        row(
            "  100,000 rows / 1,000 rows",
            [peaks[100_000] / peaks[1000]],
            "x",
            "does not grow",
        )
    ]
