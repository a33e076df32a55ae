"""Foretells what a cache will cost, and when it pays, from a short calibration or from given rates.

Online distillation asks the teacher for one view per image, student and epoch; a cache asks it for
V views and the eval view per image, once. Reading costs neither.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pipeline import runtime
from pipeline.cache import layout
from pipeline.cluster import Place
from pipeline.conveyor import carry_units
from pipeline.embed import CacheOptions
from pipeline.errors import DataError, SampleError
from pipeline.making import renderers_of
from pipeline.options import to_mapping
from pipeline.resident import resident_teacher
from pipeline.shards import Shard, find_shards, read_samples, write_shards
from pipeline.unit import UnitJob, UnitReport

_VIEWS = 4  # of the calibration
_MOST_SAMPLES = 2000
_FORWARDS = 3
# Of the arrays beside targets: params are float32; keys, digests and the rest are per sample.
_PARAM_BYTES = 4 * len(layout.PARAM_COLUMNS)
_SAMPLE_BYTES = 100


@dataclass(frozen=True)
class Rates:
    """What a plan is reckoned from.

    views_per_second: of the whole of stage one. forwards_per_second: of the teacher alone, None if
    that was not measured. bytes_per_view: on disk, targets and all else.
    """

    samples: int
    dim: int
    views_per_second: float
    bytes_per_view: float
    forwards_per_second: float | None = None


@dataclass(frozen=True)
class PlanRow:
    """The cost of V scheduled views and the eval view of every sample.

    breakeven: students x epochs from which on the cache has cost the teacher less than online
    distillation would.
    """

    views: int
    targets: int
    bytes: int
    teacher_hours: float
    breakeven: int


@dataclass(frozen=True)
class CachePlan:
    """A plan: what was measured or given, and a row for each number of views."""

    rates: Rates
    rows: tuple[PlanRow, ...]

    def as_mapping(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return asdict(self)

    def text(self) -> str:
        """Return the plan as a table."""
        rates = self.rates
        alone = rates.forwards_per_second
        lines = [
            f"{rates.samples:,} samples, D = {rates.dim}, {rates.views_per_second:,.0f} views/s"
            + (f" (the teacher alone: {alone:,.0f})" if alone else "")
            + f", {rates.bytes_per_view:,.0f} bytes a view",
            f"{'views':>8}{'targets':>16}{'disk':>12}{'teacher':>12}  pays from students x epochs",
        ]
        lines += [
            f"{row.views:>8}{row.targets:>16,}{row.bytes / 1e9:>9,.3g} GB"
            f"{row.teacher_hours:>10,.3g} h  {row.breakeven:,}"
            for row in self.rows
        ]
        return "\n".join(lines)


def plan_cache(rates: Rates, views: Sequence[int]) -> CachePlan:
    """Reckon a row for each V: (V + 1) views of every sample, once."""
    rows = []
    for count in views:
        targets = rates.samples * (count + 1)
        rows.append(
            PlanRow(
                views=count,
                targets=targets,
                bytes=round(targets * rates.bytes_per_view),
                teacher_hours=targets / rates.views_per_second / 3600,
                breakeven=count + 2,  # the first epoch more than the cache asked for views
            )
        )
    return CachePlan(rates, tuple(rows))


def given_rates(samples: int, dim: int, views_per_second: float) -> Rates:
    """Return rates without measuring; bytes are what the arrays take before compression."""
    per_view = 2 * dim + _PARAM_BYTES + _SAMPLE_BYTES
    return Rates(samples, dim, views_per_second, per_view)


def calibrate(
    shards: Sequence[Shard], spec: CacheOptions, place: Place, *, seconds: float = 10.0
) -> Rates:
    """Embed some samples of the first train shard in a folder that is thrown away, and count.

    seconds: about how long the teacher is to work. The number of samples of all shards is reckoned
    from their bytes. Raises DataError without train samples, and whatever stage one raises.
    """
    first = next((shard for shard in shards if shard.split == "train"), None)
    if first is None:
        raise DataError("no train shard to calibrate on: name one train-....tar")
    teacher = resident_teacher(spec.teacher, place.device)
    side, size = teacher.preprocess.size, spec.teacher.batch_size
    blank = torch.zeros((size, 3, side, side), dtype=torch.uint8)
    with runtime.torch_threads(spec.teacher.threads), TemporaryDirectory() as name:
        teacher.embed_images(blank).cpu()
        seconds_spent = _seconds(lambda: teacher.embed_images(blank).cpu(), _FORWARDS)
        forwards = _FORWARDS * size / seconds_spent
        wanted = min(_MOST_SAMPLES, max(size, int(forwards * seconds / _VIEWS)))
        some, per_sample = _excerpt(first, Path(name), wanted)
        job = UnitJob(
            cache=Path(name) / "cache",
            unit=layout.UnitId("train", some.name, spec.schedule.name, 0, _VIEWS - 1),
            shard=some,
            teacher=spec.teacher,
            device=place.device,
            teacher_digest="",
            fingerprint="",
            schedule={"kind": "crops", **to_mapping(spec.schedule)},
            decode=spec.decode,
            renderers=renderers_of(place, shards),
        )
        started = replace(job, cache=Path(name) / "start", unit=replace(job.unit, last=0))
        list(carry_units([started], teacher, lambda _: None))  # processes that render, warm
        began = time.perf_counter()
        ((_, outcome),) = carry_units([job], teacher, lambda _: None)
        took = time.perf_counter() - began
        if not isinstance(outcome, UnitReport):
            raise outcome
        unit = job.cache / "units" / job.unit.name
        on_disk = sum(path.stat().st_size for path in unit.rglob("*") if path.is_file())
    return Rates(
        samples=round(sum(shard.size_bytes for shard in shards) / per_sample),
        dim=teacher.dim,
        views_per_second=outcome.seen * _VIEWS / took,
        bytes_per_view=on_disk / (outcome.seen * _VIEWS),
        forwards_per_second=forwards,
    )


def _seconds(work: Any, times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        work()
    return time.perf_counter() - began


def _excerpt(shard: Shard, folder: Path, wanted: int) -> tuple[Shard, float]:
    """Write the first usable samples of a shard to another; return it, and bytes per sample."""
    pairs, end, count = [], 0, 0
    for sample in itertools.islice(read_samples(shard), wanted):
        end, count = sample.end, count + 1
        try:
            image = sample.image()
            extension = next(name for name, found in sample.members.items() if found is image)
            pairs.append((f"{sample.ordinal:08d}", {extension: image.content}))
        except SampleError:
            continue
    if not pairs:
        raise DataError(f"{shard}: none of its first {count} samples has an image")
    (path,) = write_shards(pairs, folder, "train", per_shard=len(pairs))
    (some,) = find_shards([str(path)])
    return some, end / count
