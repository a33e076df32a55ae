"""Recomputes a random share of a cache's targets with the live teacher, and compares them.

Shape letters: n samples of a shard, V views of a unit, D teacher dimension, P view parameters,
B batch, S side in pixels.
"""

import heapq
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import runtime
from pipeline.audit.arrays import StoredGroup
from pipeline.audit.findings import Damaged, Findings
from pipeline.audit.live import live_teacher, recorded_options
from pipeline.audit.units import open_unit, read_attributes
from pipeline.cache import layout
from pipeline.cache.reader import read_manifest
from pipeline.decode import DecodePolicy
from pipeline.errors import CacheMismatchError
from pipeline.schedule import ViewParams, philox_words
from pipeline.shards import Shard, content_digest
from pipeline.teacher import Teacher
from pipeline.views import render_views

_NUM_WORST = 5
_Vectors = dict[int, list[tuple[int, np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class Recomputed:
    """One target beside its recomputation."""

    unit: str
    ordinal: int
    key: str
    view: int
    cosine: float


@dataclass
class Reembedding:
    """Cosines of stored and recomputed targets; the quantiles are None if there was no target."""

    share: float
    seed: int
    bound: float
    targets: int = 0
    minimum: float | None = None
    percent_1: float | None = None
    median: float | None = None
    worst: list[Recomputed] = field(default_factory=list)

    def as_mapping(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    def text(self) -> str:
        """Say how far recomputed targets are from stored ones, and which are farthest."""
        if self.minimum is None:
            return "re-embedded 0 targets: none is valid"
        quantiles = ("minimum", "percent_1", "median")
        gaps = ", ".join(f"{name} 1 - {1 - getattr(self, name):.1e}" for name in quantiles)
        lines = [f"re-embedded {self.targets} targets (seed {self.seed}), cosine: {gaps}"]
        lines += [
            f"  {item.unit}: sample {item.ordinal} ({item.key}), view {item.view}: "
            f"1 - {1 - item.cosine:.1e}"
            for item in self.worst
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Pick:
    """A target to recompute. stored_D: float16. view_3SS: uint8, rendered anew."""

    unit: str
    ordinal: int
    key: str
    view: int
    stored_D: np.ndarray
    view_3SS: torch.Tensor


def reembed(
    cache: Path,
    shards: Sequence[Shard],
    findings: Findings,
    *,
    share: float,
    seed: int,
    bound: float,
    device: str,
    teacher: str | None = None,
) -> Reembedding:
    """Recompute a share (0 to 1) of every unit's valid targets, at least one of each.

    Which ones is a function of the seed. Images are read by their recorded offsets, held against
    their digests and rendered by the stored parameters. A cosine below `bound`, another image or
    a damaged array is added to the findings. Raises CacheMismatchError for another teacher, or if
    shards are not given.
    """
    manifest = read_manifest(cache)
    spec = recorded_options(cache, manifest, teacher=teacher).teacher
    paths = _paths(cache, manifest, shards)
    live = live_teacher(cache, manifest, spec, device)
    picks = _picks(cache, manifest, paths, live.preprocess.size, share, seed, findings)
    with runtime.torch_threads(spec.threads):
        done = list(_recomputed(picks, live, spec.batch_size))
    report = Reembedding(share, seed, bound, targets=len(done))
    if done:
        cosines = np.array([item.cosine for item in done])
        report.minimum, report.median = float(cosines.min()), float(np.median(cosines))
        report.percent_1 = float(np.quantile(cosines, 0.01))
        report.worst = heapq.nsmallest(_NUM_WORST, done, key=lambda item: item.cosine)
    _add_findings(done, bound, findings)
    return report


def _add_findings(done: Sequence[Recomputed], bound: float, findings: Findings) -> None:
    totals, below = Counter(item.unit for item in done), Counter[str]()
    worst: dict[str, Recomputed] = {}
    for item in done:
        if item.cosine < bound:
            below[item.unit] += 1
            worst[item.unit] = min(worst.get(item.unit, item), item, key=lambda i: i.cosine)
    for unit, item in worst.items():
        findings.add(
            f"units/{unit}",
            f"{below[unit]} of {totals[unit]} recomputed targets have a cosine below {bound}, at "
            f"worst {item.cosine:.6f}: sample {item.ordinal} ({item.key}), view {item.view}",
            "targets",
        )


def _paths(
    cache: Path, manifest: Mapping[str, Any], shards: Sequence[Shard]
) -> dict[tuple[str, str], Path]:
    """Return where each shard of the cache lies; raises CacheMismatchError for one not given."""
    given = {(shard.split, shard.name): shard.path for shard in shards}
    wanted = dict.fromkeys((unit.split, unit.shard) for unit in layout.planned_units(manifest))
    lacking = [f"{split}-{name}" for split, name in wanted if (split, name) not in given]
    if lacking:
        raise CacheMismatchError(
            f"{cache} was made from more shards; point --shards to all of them:",
            [(name, "present", "(not given)") for name in lacking],
        )
    return {place: given[place] for place in wanted}


def _picks(
    cache: Path,
    manifest: Mapping[str, Any],
    paths: Mapping[tuple[str, str], Path],
    size: int,
    share: float,
    seed: int,
    findings: Findings,
) -> Iterator[_Pick]:
    """Yield what is to be recomputed, unit by unit: of a damaged unit what can be read, if any."""
    units = layout.planned_units(manifest)
    fingerprint, dim = layout.fingerprint(manifest), manifest["teacher"]["dim"]
    policy = DecodePolicy(**manifest["decode"])
    with runtime.progress("re-embedding", len(units), "units") as advance:
        for number, unit in enumerate(units):
            with findings.at(f"units/{unit.name}"):
                attributes = read_attributes(cache, unit, fingerprint)
                stored = open_unit(cache, unit, attributes, dim)
                chosen = _choose(stored.read("valid"), share, seed, number)
                rows = _vectors(stored, unit, chosen, findings)
                path = paths[unit.split, unit.shard]
                yield from _rendered(stored, unit, rows, path, policy, size, findings)
            advance(1)


def _choose(valid_nV: np.ndarray, share: float, seed: int, number: int) -> np.ndarray:
    """Return (row, view) of a share of the valid targets, rounded up: int64 [chosen,2]."""
    pairs = np.argwhere(valid_nV)
    words = philox_words(np.array([seed, 0], np.uint64), number, len(pairs))
    chosen = np.argsort(words, kind="stable")[: math.ceil(share * len(pairs))]
    return pairs[np.sort(chosen)]


def _vectors(
    stored: StoredGroup, unit: layout.UnitId, chosen: np.ndarray, findings: Findings
) -> _Vectors:
    """Return (view, target, params) of the chosen targets by row."""
    place = f"units/{unit.name}"
    rows: _Vectors = {}
    for view in np.unique(chosen[:, 1]).tolist():
        targets_nD = params_nP = None
        with findings.at(place, "targets", unit.first + view):
            targets_nD = stored.read_view("targets", view)
        with findings.at(place, "params", unit.first + view):
            params_nP = stored.read_view("params", view)
        if targets_nD is None or params_nP is None:
            continue
        for row in chosen[chosen[:, 1] == view, 0].tolist():
            rows.setdefault(row, []).append((view, targets_nD[row], params_nP[row]))
    return rows


def _rendered(
    stored: StoredGroup,
    unit: layout.UnitId,
    rows: _Vectors,
    path: Path,
    policy: DecodePolicy,
    size: int,
    findings: Findings,
) -> Iterator[_Pick]:
    """Render the chosen views of each row from its shard, by the stored parameters."""
    keys, samples_n6, digests_n = (stored.read(name) for name in ("keys", "samples", "digests"))
    with open(path, "rb") as file:
        for row in sorted(rows):
            with findings.at(f"units/{unit.name}"):
                sample = dict(zip(layout.SAMPLE_COLUMNS, samples_n6[row].tolist(), strict=True))
                encoded = os.pread(file.fileno(), sample["bytes"], sample["offset"])
                if content_digest(encoded) != int(digests_n[row]):
                    raise Damaged(
                        f"sample {row} ({keys[row]}): {path} holds another image at its offset"
                    )
                params = [ViewParams(*params_P.tolist()) for _, _, params_P in rows[row]]
                views_V3SS = render_views(encoded, params, size, policy)
                for (view, stored_D, _), view_3SS in zip(rows[row], views_V3SS, strict=True):
                    yield _Pick(
                        unit.name, row, str(keys[row]), unit.first + view, stored_D, view_3SS
                    )


def _recomputed(picks: Iterator[_Pick], teacher: Teacher, batch_size: int) -> Iterator[Recomputed]:
    """Embed the picks in batches of the shape that the cache was made with, the last one padded."""
    while batch := list(islice(picks, batch_size)):
        views_B3SS = torch.zeros((batch_size, *batch[0].view_3SS.shape), dtype=torch.uint8)
        views_B3SS[: len(batch)] = torch.stack([pick.view_3SS for pick in batch])
        vectors_BD = teacher.encode_images(views_B3SS).cpu().numpy()
        for pick, vector_D in zip(batch, vectors_BD, strict=False):
            cosine = _cosine(pick.stored_D, vector_D)
            yield Recomputed(pick.unit, pick.ordinal, pick.key, pick.view, cosine)


def _cosine(one_D: np.ndarray, other_D: np.ndarray) -> float:
    """Return the cosine of two vectors in float64; -1 if there is none, which no bound allows."""
    one, other = one_D.astype(np.float64), other_D.astype(np.float64)
    lengths = np.linalg.norm(one) * np.linalg.norm(other)
    cosine = float(one @ other / lengths) if lengths > 0 else math.nan
    return cosine if math.isfinite(cosine) else -1.0
