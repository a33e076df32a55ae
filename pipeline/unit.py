"""One unit: a shard's samples in a range of views; its rows as they fill, and their publishing.

Shape letters: n samples of a shard, V views of the unit, D teacher dimension, P view parameters,
B batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache import layout, writer
from pipeline.decode import DecodePolicy
from pipeline.rendering import Rendered, RenderPlan
from pipeline.schedule import schedule_from
from pipeline.shards import Member, Sample, Shard
from pipeline.teacher import TeacherOptions

_LEAST_NORM = 1e-6  # a shorter vector has no direction


@dataclass(frozen=True)
class UnitJob:
    """All that a process anywhere needs to make one unit.

    renderers: processes that decode and render; 0 renders in the process that embeds.
    """

    cache: Path
    unit: layout.UnitId
    shard: Shard
    teacher: TeacherOptions
    device: str
    teacher_digest: str
    fingerprint: str
    schedule: Mapping[str, Any]
    decode: DecodePolicy
    renderers: int = 0

    def plan(self, size: int, ring: int) -> RenderPlan:
        """Return what is rendered of each sample for a teacher whose input has `size` pixels."""
        unit = self.unit
        schedule = schedule_from(self.schedule)
        return RenderPlan(schedule, unit.first, unit.last, self.decode, size, ring)


@dataclass(frozen=True)
class UnitReport:
    """What became of one unit."""

    name: str
    published: bool  # False: another process had published it first
    seen: int
    skipped: int
    views: int


class UnitRows:
    """The growing columns of a unit; a skipped sample keeps its row, invalid and NaN."""

    def __init__(self, job: UnitJob, dim: int) -> None:
        self.job = job
        self._dim = dim
        self._keys: list[str] = []
        self._ends: list[int] = []
        self._samples: list[list[int]] = []
        self._digests: list[int] = []
        # Of one view after another: [B,P]; [B,D], as they will be stored; [B]; [B].
        self._params: list[np.ndarray] = []
        self._targets: list[np.ndarray] = []
        self._norms: list[np.ndarray] = []
        self._valid: list[np.ndarray] = []
        self._num_embedded = 0
        self._skips: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def num_skipped(self) -> int:
        """How many samples will have no target."""
        return len(self._skips)

    def end_of(self, ordinal: int) -> int:
        """Return where a sample's last content ends in the tar."""
        return self._ends[ordinal]

    def add(self, sample: Sample) -> None:
        """Add an empty row."""
        self._keys.append(layout.escape_key(sample.key))
        self._ends.append(sample.end)
        self._samples.append([sample.ordinal, -1, 0, 0, 0, -1])
        self._digests.append(0)

    def describe(self, ordinal: int, image: Member, label: int = -1) -> None:
        """Record where a sample's image lies and what its label is."""
        self._samples[ordinal][1:3] = image.offset, image.size_bytes
        self._samples[ordinal][5] = label

    def rendered(self, ordinal: int, rendered: Rendered) -> None:
        """Record a sample's size and digest, and why it has no views, if so."""
        self._samples[ordinal][3:5] = rendered.width, rendered.height
        self._digests[ordinal] = rendered.digest
        if rendered.reason:
            self.skip(ordinal, rendered.reason, rendered.detail)

    def skip(self, ordinal: int, reason: str, detail: str) -> None:
        """Record why a sample has no targets; the first reason stays."""
        skip = {"ordinal": ordinal, "key": self._keys[ordinal], "reason": reason, "detail": detail}
        self._skips.setdefault(ordinal, skip)

    def embedded(self, params_BP: np.ndarray, vectors_BD: np.ndarray) -> None:
        """Record the next B views, also those of skipped samples; what is no vector is a skip.

        params_BP: what decided them (float32, copied by the caller); NaN for what has no view.
        vectors_BD: float32, as the teacher gives them.
        """
        with np.errstate(over="ignore"):
            norms_B = np.linalg.norm(vectors_BD, axis=1)
        valid_B = (norms_B > _LEAST_NORM) & (norms_B < np.inf)  # false for NaN too
        targets_BD = np.full(vectors_BD.shape, np.nan, np.float16)
        targets_BD[valid_B] = vectors_BD[valid_B] / norms_B[valid_B, None]
        self._params.append(params_BP)
        self._targets.append(targets_BD)
        self._norms.append(norms_B.astype(np.float32, copy=False))
        self._valid.append(valid_B)
        for place in np.flatnonzero(~valid_B).tolist():
            ordinal = (self._num_embedded + place) // self.job.unit.num_views
            self.skip(ordinal, "bad-vector", f"the teacher gave a vector of norm {norms_B[place]}")
        self._num_embedded += len(vectors_BD)

    def publish(self, shard_sha256: str) -> UnitReport:
        """Write the unit; raises CacheError or OSError."""
        job, seen, skipped = self.job, len(self._keys), len(self._skips)
        attributes = {
            "fingerprint": job.fingerprint,
            "shard": {
                "name": job.shard.name,
                "bytes": job.shard.size_bytes,
                "sha256": shard_sha256,
            },
            "counts": {"seen": seen, "embedded": seen - skipped, "skipped": skipped},
            "skips": [self._skips[ordinal] for ordinal in sorted(self._skips)],
        }
        published = writer.publish_unit(job.cache, job.unit, self._arrays(), attributes)
        views = (seen - skipped) * job.unit.num_views
        return UnitReport(job.unit.name, published, seen, skipped, views)

    def _arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of layout.UNIT_ARRAYS."""
        n, num_views = len(self._keys), self.job.unit.num_views

        def by_sample(parts: list[np.ndarray], *shape: int) -> np.ndarray:
            flat = np.concatenate(parts) if parts else np.zeros((0, *shape))
            return flat.reshape(n, num_views, *shape)

        targets_nVD, valid_nV = by_sample(self._targets, self._dim), by_sample(self._valid)
        norms_nV = by_sample(self._norms).astype(np.float32, copy=False)
        skipped = sorted(self._skips)  # of one bad view, the others are not kept either
        targets_nVD[skipped], valid_nV[skipped], norms_nV[skipped] = np.nan, False, np.nan
        return {
            "targets": targets_nVD.astype(np.float16, copy=False),
            "norms": norms_nV,
            "params": by_sample(self._params, len(layout.PARAM_COLUMNS)).astype(np.float32),
            "valid": valid_nV.astype(bool, copy=False),
            "keys": np.array(self._keys, dtype=object),
            "digests": np.array(self._digests, np.uint64),
            "samples": np.array(self._samples, np.int64).reshape(n, len(layout.SAMPLE_COLUMNS)),
        }
