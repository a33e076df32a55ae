"""Embeds one unit: a shard's samples, rendered in a range of views, through the teacher.

Shape letters: n samples of a shard, V views of the unit, D teacher dimension, P view parameters,
B batch, S side in pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import durable, runtime
from pipeline.cache import layout, writer
from pipeline.decode import DecodePolicy, SourceImage
from pipeline.errors import SampleError, ShardError, TeacherError
from pipeline.photometry import apply_photometry
from pipeline.schedule import AnySchedule, ViewParams, schedule_from
from pipeline.shards import Sample, Shard, content_digest, read_samples
from pipeline.teacher import Teacher, TeacherOptions, load_teacher
from pipeline.views import render_geometry

_NORM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class UnitJob:
    """All that a process anywhere needs to make one unit."""

    cache: Path
    unit: layout.UnitId
    shard: Shard
    teacher: TeacherOptions
    device: str
    teacher_digest: str
    fingerprint: str
    schedule: Mapping[str, Any]
    decode: DecodePolicy


@dataclass(frozen=True)
class UnitReport:
    """What became of one unit."""

    name: str
    published: bool  # False: another process had published it first
    seen: int
    skipped: int
    views: int


def embed_unit(job: UnitJob, send: runtime.Send) -> UnitReport:
    """Make and publish one unit; raises ShardError, TeacherError, CacheError or OSError.

    send: told now and then how many (bytes of the tar x views, views) were done since last.
    """
    teacher = resident_teacher(job.teacher, job.device)
    found = layout.teacher_digest(resident_fingerprint(job.teacher, job.device))
    if found != job.teacher_digest:
        raise TeacherError(
            f"the teacher here ({job.teacher.model}) is not the one of the cache's manifest: its "
            "weights, architecture or preprocessing changed since"
        )
    durable.fault_point(f"in-{job.unit.name}")
    with runtime.torch_threads(job.teacher.threads):
        rows, shard_sha256 = _embed_rows(job, teacher, runtime.Meter(send))
    arrays = rows.arrays(job.unit.num_views, teacher.dim)
    skips = rows.skips
    attributes = {
        "fingerprint": job.fingerprint,
        "shard": {"name": job.shard.name, "bytes": job.shard.size_bytes, "sha256": shard_sha256},
        "counts": {
            "seen": len(rows.keys),
            "embedded": len(rows.keys) - len(skips),
            "skipped": len(skips),
        },
        "skips": skips,
    }
    published = writer.publish_unit(job.cache, job.unit, arrays, attributes)
    views = (len(rows.keys) - len(skips)) * job.unit.num_views
    return UnitReport(job.unit.name, published, len(rows.keys), len(skips), views)


@lru_cache(maxsize=1)
def resident_teacher(spec: TeacherOptions, device: str) -> Teacher:
    """Return this process's teacher, loaded at first use."""
    return load_teacher(spec, runtime.pick_device(device))


@lru_cache(maxsize=1)
def resident_fingerprint(spec: TeacherOptions, device: str) -> Mapping[str, Any]:
    """Return the fingerprint of this process's teacher, hashed once."""
    return resident_teacher(spec, device).fingerprint()


@dataclass
class _Rows:
    """The growing columns of a unit; a skipped sample keeps its row, invalid and NaN."""

    keys: list[str] = field(default_factory=list)
    samples: list[tuple[int, ...]] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)
    params: list[np.ndarray] = field(default_factory=list)  # [V,P] each
    targets: list[np.ndarray] = field(default_factory=list)  # [V,D] each
    skips: list[dict[str, Any]] = field(default_factory=list)

    def skip(self, ordinal: int, reason: str, detail: str) -> None:
        key = self.keys[ordinal]
        self.skips.append({"ordinal": ordinal, "key": key, "reason": reason, "detail": detail})

    def arrays(self, num_views: int, dim: int) -> dict[str, np.ndarray]:
        """Return the arrays of layout.UNIT_ARRAYS; vectors that are no vectors become skips."""
        n, num_params = len(self.keys), len(layout.PARAM_COLUMNS)
        targets = np.array(self.targets, np.float32).reshape(n, num_views, dim)
        norms = np.linalg.norm(targets, axis=-1)
        valid = np.abs(norms - 1) < _NORM_TOLERANCE  # false for NaN and Inf too
        skipped = {skip["ordinal"] for skip in self.skips}
        for ordinal in np.flatnonzero(~valid.all(axis=1)):
            if int(ordinal) not in skipped:
                worst = norms[ordinal][~valid[ordinal]][0]
                self.skip(int(ordinal), "bad-vector", f"the teacher gave a vector of norm {worst}")
        targets[~valid] = np.nan
        return {
            "targets": targets.astype(np.float16),
            "params": np.array(self.params, np.float32).reshape(n, num_views, num_params),
            "valid": valid,
            "keys": np.array(self.keys, dtype=object),
            "digests": np.array(self.digests, np.uint64),
            "samples": np.array(self.samples, np.int64).reshape(n, len(layout.SAMPLE_COLUMNS)),
        }


def _embed_rows(job: UnitJob, teacher: Teacher, meter: runtime.Meter) -> tuple[_Rows, str]:
    """Read the whole shard; return its rows and the sha256 of the file's bytes."""
    rows, digest = _Rows(), sha256()
    schedule = schedule_from(job.schedule)
    batch = _Batch(teacher, job.teacher.batch_size, rows.targets)
    position = 0
    for sample in read_samples(job.shard, digest):
        _add_sample(job, schedule, sample, rows, batch, teacher)
        meter.add((sample.end - position) * job.unit.num_views, job.unit.num_views)
        position = sample.end
    batch.flush()
    meter.flush()
    after = job.shard.path.stat()
    if (after.st_size, after.st_mtime_ns) != (job.shard.size_bytes, job.shard.mtime_ns):
        raise ShardError(f"{job.shard.path} changed while it was read: run teacher-cache again")
    return rows, digest.hexdigest()


def _add_sample(
    job: UnitJob,
    schedule: AnySchedule,
    sample: Sample,
    rows: _Rows,
    batch: "_Batch",
    teacher: Teacher,
) -> None:
    """Add a row for the sample; its views join the batch, or a skip says why not."""
    views = range(job.unit.first, job.unit.last + 1)
    params_VP = np.full((len(views), len(layout.PARAM_COLUMNS)), np.nan, np.float32)
    rows.keys.append(layout.escape_key(sample.key))
    rows.params.append(params_VP)
    rows.targets.append(np.full((len(views), teacher.dim), np.nan, np.float32))
    offset, size, width, height, label, digest = -1, 0, 0, 0, -1, 0
    try:
        image = sample.image()
        offset, size, digest = image.offset, len(image.content), content_digest(image.content)
        label = sample.label()
        source = SourceImage(image.content, job.decode)
        width, height = source.width, source.height
        params = [schedule.params(sample.key, view, width, height) for view in views]
        params_VP[:] = params
        geometry = render_geometry(source, params, teacher.preprocess.size)
        batch.add(sample.ordinal, geometry, params)
    except SampleError as error:
        rows.skip(sample.ordinal, error.reason, error.detail)
    rows.samples.append((sample.ordinal, offset, size, width, height, label))
    rows.digests.append(digest)


class _Batch:
    """Gathers views across samples into batches of one fixed shape, the last one padded.

    Batches never cross units, so a unit's vectors do not depend on what else is being made.
    """

    def __init__(self, teacher: Teacher, size: int, targets: list[np.ndarray]) -> None:
        side = teacher.preprocess.size
        self._teacher, self._targets = teacher, targets
        self._views_B3SS = torch.zeros((size, 3, side, side), dtype=torch.uint8)
        self._params_BP = np.array([ViewParams()] * size, np.float32)
        self._places: list[tuple[int, int]] = []

    def add(self, row: int, views_V3SS: torch.Tensor, params: list[ViewParams]) -> None:
        for view, pixels in enumerate(views_V3SS):
            slot = len(self._places)
            self._views_B3SS[slot] = pixels
            self._params_BP[slot] = params[view]
            self._places.append((row, view))
            if len(self._places) == len(self._params_BP):
                self.flush()

    def flush(self) -> None:
        """Embed what is there, padded with zeros to the full shape."""
        if not self._places:
            return
        count = len(self._places)
        self._views_B3SS[count:] = 0
        self._params_BP[count:] = ViewParams()
        views = apply_photometry(self._views_B3SS, self._params_BP)
        for (row, view), vector in zip(
            self._places, self._teacher.embed_images(views).numpy(), strict=False
        ):
            self._targets[row][view] = vector
        self._places.clear()
