"""Both stages on a GPU, each beside the part of it that nothing can make faster.

Stage one beside the teacher alone on views that lie on the GPU; stage two beside bare steps on a
batch that lies there. Photos are 500x375; half precision is bf16, as recipes have it.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

from benchmarks.host import HostSide
from benchmarks.inputs import FULL, random_teacher
from benchmarks.measure import Row, in_turn, ratios, row
from benchmarks.training import Bench
from pipeline.teacher import Teacher, TeacherOptions, load_teacher

DEVICE = os.environ.get("DEVICE", "cuda")
ROUNDS = 3
CORES = len(os.sched_getaffinity(0))
TEACHERS = {"ViT-B-32": 20_000, "ViT-L-14": 4000}  # photos, of four views each
VIEWS, TEACHER_BATCH = 4, 256
STUDENTS: tuple[tuple[str, int, int, dict[str, Any]], ...] = (  # model, px, batch, training
    ("resnet50", 224, 256, {}),
    ("resnet50", 224, 256, {"compile": True}),
)
# Many times what loaders make ahead, or the epoch that counts would begin with it done.
PHOTOS = 65_536


def rows() -> list[Row]:
    """Measure; each part is printed as it ends. STAGE: 1 or 2, of the environment, for one part."""
    found = []
    parts = {"1": _stage_one, "2": _stage_two}
    chosen = os.environ.get("STAGE", "12")
    with TemporaryDirectory() as folder:
        for part in (parts[stage] for stage in chosen):
            for item in part(Path(folder)):
                print(*item.as_text(), sep=" | ", file=sys.stderr, flush=True)
                found.append(item)
    return found


def _stage_one(folder: Path) -> Iterator[Row]:
    for name, photos in TEACHERS.items():
        teacher = load_teacher(
            TeacherOptions(
                model=random_teacher(folder / name, name),
                precision="bf16",
                batch_size=TEACHER_BATCH,
            ),
            torch.device(DEVICE),
        )
        host = HostSide(
            folder / f"{name}-host", photos, teacher=teacher, device=DEVICE, batch=TEACHER_BATCH
        )
        host.run(VIEWS, renderers=CORES)  # started, warm
        stage, alone = in_turn(
            lambda host=host: host.run(VIEWS, renderers=CORES),  # type: ignore[misc]
            lambda teacher=teacher: _alone(teacher),  # type: ignore[misc]
            rounds=ROUNDS,
        )
        note = f"{name}, bf16, {CORES} cores, {_name()}"
        yield row(f"stage one with {name}", stage, "views/s", note=note)
        yield row("  that teacher alone", alone, "views/s")
        yield row("  stage one / teacher alone", ratios(stage, alone), "x", ">= 0.97")


def _alone(teacher: Teacher) -> float:
    """Return views per second of a teacher on views that lie on its device."""
    shape = (TEACHER_BATCH, 3, 224, 224)
    views = torch.randint(0, 256, shape, dtype=torch.uint8, device=DEVICE)
    teacher.embed_images(views)
    vectors, count, began = torch.empty(0), 0, perf_counter()
    while perf_counter() - began < 2:
        for _ in range(20):
            vectors = teacher.embed_images(views)
        vectors.sum().item()  # waits for all
        count += 20 * TEACHER_BATCH
    return count / (perf_counter() - began)


def _stage_two(folder: Path) -> Iterator[Row]:
    for number, (model, px, batch, training) in enumerate(STUDENTS):
        bench = Bench(
            folder / str(number),
            None,
            PHOTOS,
            schedule=FULL,
            px=px,
            device=DEVICE,
            **{
                "epochs": 2,
                "batch_size": batch,
                "precision": "bf16",
                "channels_last": True,
                **training,
            },
        )
        workers, waits = max(1, CORES - 1), []

        def ours() -> float:
            seconds = bench.seconds(model, workers=workers)  # noqa: B023
            waits.append(100 * bench.wait)  # noqa: B023
            return seconds

        full, bare = in_turn(ours, lambda: bench.bare(model), rounds=ROUNDS)  # noqa: B023
        load = [bench.loading(workers)]
        options = ", ".join([*training, f"batch {batch}, bf16, {workers} loaders"])
        yield row(f"training {model}, {px} px", [1 / s for s in full], "/s", note=options)
        yield row("  bare steps", [1 / s for s in bare], "/s")
        yield row("  loader alone", [1 / s for s in load], "/s")
        target = ">= 0.97 where the loader is faster"
        yield row("  training / bare steps", ratios(bare, full), "x", target)
        yield row("  share of time that it waits for data", waits, "%")


def _name() -> str:
    return torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
