"""What the benchmarks run on: photo-like shards, jobs, and teachers that only cost time."""

import io
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.cache import layout
from pipeline.decode import DecodePolicy
from pipeline.schedule import EVAL, AnySchedule, Schedule
from pipeline.shards import find_shards, write_shards
from pipeline.teacher import Preprocess, TeacherOptions
from pipeline.unit import UnitJob

PHOTO = (500, 375)  # width, height: ImageNet's commonest size
PLAIN = Schedule(name="plain", jitter=0, grayscale=0, blur=0)  # crop, resize, flip
FULL = Schedule(name="full")  # the defaults: jitter, grayscale and blur too


@lru_cache(maxsize=32)
def photo(seed: int) -> bytes:
    """Return a JPEG of quality 90 whose spectrum falls like a photograph's; about 50 kB."""
    generator = np.random.default_rng(seed)
    width, height = PHOTO
    total = np.zeros((height, width, 3))
    for detail in (4, 16, 64, 256):
        coarse = (height * detail // 256 + 1, width * detail // 256 + 1, 3)
        noise = Image.fromarray(generator.integers(0, 256, coarse, dtype=np.uint8))
        total += np.asarray(noise.resize(PHOTO, Image.Resampling.BICUBIC)) / detail**0.5
    total = (total - total.min()) / (total.max() - total.min()) * 255
    buffer = io.BytesIO()
    Image.fromarray(total.astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_photos(folder: Path, shards: int, per_shard: int) -> Path:
    """Write shards of photos (32 different ones, over and over)."""
    samples = ((f"{i:07d}", {"jpg": photo(i % 32)}) for i in range(shards * per_shard))
    write_shards(samples, folder, "train", per_shard=per_shard)
    return folder


def jobs_over(
    shards: Path,
    cache: Path,
    views: int,
    *,
    renderers: int,
    schedule: AnySchedule = PLAIN,
    batch: int,
    device: str = "cpu",
) -> list[UnitJob]:
    """Return a job for every shard, as stage one would make it."""
    from pipeline.options import to_mapping

    name, kind = (schedule.name, "crops") if isinstance(schedule, Schedule) else (EVAL, EVAL)
    return [
        UnitJob(
            cache=cache,
            unit=layout.UnitId(shard.split, shard.name, name, 0, views - 1),
            shard=shard,
            teacher=TeacherOptions(model="stand-in", batch_size=batch),
            device=device,
            teacher_digest="",
            fingerprint="",
            schedule={"kind": kind, **to_mapping(schedule)},
            decode=DecodePolicy(),
            renderers=renderers,
        )
        for shard in find_shards([str(shards)])
    ]


class NullTeacher:
    """A stand-in that embeds nothing: it gives one constant vector, at once."""

    logit_scale, logit_bias, max_tokens = 100.0, None, 77

    def __init__(self, size: int = 224, dim: int = 512) -> None:
        self.dim = dim
        self.preprocess = Preprocess(
            size=size,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            interpolation="bicubic",
            resize_mode="shortest",
        )
        self._vectors_BD = torch.zeros(0)

    def encode_images(self, views_B3SS: torch.Tensor) -> torch.Tensor:
        """Return the constant vector for every view."""
        if len(self._vectors_BD) != len(views_B3SS):
            self._vectors_BD = torch.full((len(views_B3SS), self.dim), self.dim**-0.5)
        return self._vectors_BD

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the constant vector for every text."""
        return torch.full((len(texts), self.dim), self.dim**-0.5)

    def count_tokens(self, text: str) -> int:
        """Count words."""
        return len(text.split())

    def fingerprint(self) -> dict[str, Any]:
        """Return a name."""
        return {"model": "stand-in"}


class SimulatedDevice(NullTeacher):
    """A simulated device, no teacher: it takes 1 / rate seconds a view, and holds no lock."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.calls: list[tuple[float, float]] = []  # begin and end of each batch, in seconds

    def encode_images(self, views_B3SS: torch.Tensor) -> torch.Tensor:
        """Wait as long as a device of that rate would compute."""
        begin = time.perf_counter()
        time.sleep(len(views_B3SS) / self.rate)
        self.calls.append((begin, time.perf_counter()))
        return super().encode_images(views_B3SS)

    def idle_share(self) -> float:
        """Return the share of time between the first batch and the last in which it did nothing."""
        gaps = [after[0] - before[1] for before, after in self._pairs()]
        return sum(gaps) / (self.calls[-1][1] - self.calls[0][0])

    def _pairs(self) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
        return zip(self.calls, self.calls[1:], strict=False)


def cached_photos(
    folder: Path, count: int, schedule: Schedule, *, teacher: str | None = None, views: int = 1
) -> tuple[Path, Path]:
    """Make a sealed cache of photos and return it with its shards; by default a tiny teacher's."""
    from pipeline.cluster import Place
    from pipeline.embed import build_cache
    from pipeline.recipe import recipe_from

    shards = write_photos(folder / "shards", 4, count // 4)
    fields = photo_recipe(teacher or tiny_teacher(folder / "teacher"), schedule, views)
    recipe = recipe_from(fields, where="benchmark")
    build_cache(
        folder / "cache",
        find_shards([str(shards)]),
        recipe.cache_options(),
        recipe=recipe.resolved(),
        place=Place(device="cpu"),
    )
    return folder / "cache", shards


def photo_recipe(teacher: str, schedule: Schedule, views: int) -> dict[str, Any]:
    """Return a recipe over photos, with the prompts of the digits for anchors."""
    from pipeline.options import to_mapping

    return {
        "name": "benchmark",
        "teacher": {"model": teacher, "batch_size": 64, "threads": 2},
        "views": views,
        "schedule": to_mapping(schedule),
        "prompts": {"file": "digits", "anchors": "cpa", "zeroshot": "plain"},
        "losses": {"csm_ce": {}, "entmin": {}, "ism": {"weight": 10}},
        "training": {"epochs": 1, "batch_size": 64, "held_out_rows": 0},
    }


def random_teacher(folder: Path, architecture: str) -> str:
    """Write an open_clip model with random weights as a folder; return its name for a recipe."""
    import json

    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    model = open_clip.create_model(architecture)
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
    config = {"model_cfg": open_clip.get_model_config(architecture), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return f"local-dir:{folder}"


def tiny_teacher(folder: Path) -> str:
    """Train the small teacher of the digits for one epoch; return its name for a recipe."""
    from pipeline.datasets.known import write_known
    from pipeline.prompt_file import load_prompts
    from pipeline.tiny import TinyOptions, train_tiny_teacher

    write_known("digits", folder / "digits")
    shards = find_shards([str(folder / "digits")])
    train_tiny_teacher(shards, load_prompts("digits"), folder / "model", TinyOptions(epochs=1))
    return f"local-dir:{folder / 'model'}"


def cached_squares(folder: Path, count: int) -> tuple[Path, Path, Path]:
    """Make a sealed cache of small plain images; return it, its shards and its recipe's file."""
    import yaml

    from pipeline.cluster import Place
    from pipeline.embed import build_cache
    from pipeline.recipe import load_recipe

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for number in range(count):
            buffer = io.BytesIO()
            colour = (number % 251, number % 241, number % 239)
            Image.new("RGB", (32, 32), colour).save(buffer, "PNG", compress_level=0)
            yield f"{number:07d}", {"png": buffer.getvalue()}

    write_shards(samples(), folder / "shards", "train", per_shard=1000)
    fields = photo_recipe(tiny_teacher(folder / "teacher"), PLAIN, 1)
    fields["teacher"]["batch_size"] = 256
    fields["training"]["batch_size"] = 256
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(fields), encoding="utf-8")
    recipe = load_recipe(str(file))
    build_cache(
        folder / "cache",
        find_shards([str(folder / "shards")]),
        recipe.cache_options(),
        recipe=recipe.resolved(),
        place=Place(device="cpu"),
    )
    return folder / "cache", folder / "shards", file
