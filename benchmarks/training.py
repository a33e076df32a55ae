"""Stage two as a whole: beside bare steps, beside online distillation, several students at once.

ResNet-18 at 96 px from 500x375 JPEGs. What is possible on cores that loading and training share is
the time of bare steps on tensors at hand plus that of loading, each alone on all cores.
"""

import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr
from io import StringIO
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

from benchmarks.inputs import PLAIN, cached_photos, cached_squares, photo_recipe
from benchmarks.measure import Row, in_turn, row
from pipeline.cache.reader import TargetCache
from pipeline.online import live_targets
from pipeline.recipe import Recipe, recipe_from
from pipeline.shards import find_shards
from pipeline.stage_two import Loading, open_setting, train

PHOTOS, PX, BATCH = 512, 96, 64
CPU = torch.device("cpu")
THREE = ("resnet10t", "mobilenetv3_small_050", "test_resnet")


class Bench:
    """A cache of photos by one teacher, and trainings of one epoch from it."""

    def __init__(self, folder: Path, teacher: str | None, photos: int) -> None:
        self._folder, self._count = folder, photos
        self.cache, self.shards = cached_photos(folder, photos, PLAIN, teacher=teacher)
        self._teacher = teacher or f"local-dir:{folder / 'teacher' / 'model'}"

    def recipe(self, model: str, px: int = PX) -> Recipe:
        fields = photo_recipe(self._teacher, PLAIN, 1)
        fields["student"] = {"model": model, "input_px": px}
        return recipe_from(fields, where="benchmark")

    def seconds(self, *models: str, online: bool = False, workers: int = 1, px: int = PX) -> float:
        """Return seconds per image of an epoch of these students from one stream."""
        runs = {self._folder / "runs" / model: self.recipe(model, px) for model in models}
        shutil.rmtree(self._folder / "runs", ignore_errors=True)
        lines = train(
            next(iter(runs.values())),
            [self.cache],
            find_shards([str(self.shards)]),
            runs,
            resume=False,
            device="cpu",
            loading=Loading(workers=workers),
            live=live_targets("cpu") if online else None,
        )
        line = next(iter(lines.values()))
        self.wait = float(line["data_wait_share"])
        return 1 / float(line["images_per_second"])

    def setting(self, workers: int, px: int = PX) -> Any:
        recipe = self.recipe("resnet18", px)
        shards = find_shards([str(self.shards)])
        return open_setting(
            recipe, [self.cache], shards, [recipe], None, CPU, Loading(workers=workers)
        )

    def loading(self, workers: int) -> float:
        """Return seconds per image of the loader alone."""
        source = self.setting(workers).source
        batches = source.starting_at(0, 2 * source.steps_per_epoch)
        for _ in islice(batches, 2):
            pass
        began = perf_counter()
        count = sum(len(batch.rows_B) for batch in batches)
        return (perf_counter() - began) / count

    def bare(self, model: str = "resnet18") -> float:
        """Return seconds per image of the same steps on one batch that is at hand."""
        from pipeline.losses import LossSum, Sizes, resolve_tau
        from pipeline.rundir import RunDir
        from pipeline.students import build_student
        from pipeline.train import TargetsSource, TeacherAnchors, train_students
        from pipeline.trainee import Trainee

        recipe, setting = self.recipe(model), self.setting(0)
        cache = TargetCache.open(self.cache)
        (batch,) = islice(setting.source.starting_at(0, 1), 1)

        class AtHand:
            steps_per_epoch = setting.source.steps_per_epoch
            targets_before = setting.source.targets_before

            def starting_at(self, step: int, stop: int) -> Any:
                yield from (batch for _ in range(step, stop))

        source: TargetsSource = AtHand()
        student = build_student(recipe.student, dim=cache.dim, input_px=PX, seed=0)
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
        trainee = Trainee(run, student, losses, recipe.training, size=PX, device=CPU)
        (line,) = train_students([trainee], source, [anchors], recipe.training, device=CPU)
        return 1 / float(line["images_per_second"])


def rows() -> list[Row]:
    """Measure."""
    with TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        found = _beside_bare_steps(Bench(Path(folder) / "tiny", None, PHOTOS))
        teacher = vit_b_32(Path(folder) / "vit")
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


def vit_b_32(folder: Path) -> str:
    """Write ViT-B-32 with random weights as an open_clip folder; return its name for a recipe."""
    import json

    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32")
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {
        "size": 224,
        "mode": "RGB",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    config = {"model_cfg": open_clip.get_model_config("ViT-B-32"), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return f"local-dir:{folder}"


_PEAK = """
import resource, sys
from pipeline.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert not stop.code, stop.code
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
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
