"""Stage one: streams shards through the teacher and leaves a sealed cache of targets."""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import runtime
from pipeline.anchors import cached_anchors
from pipeline.cache import layout, writer
from pipeline.cache.seal import SplitCounts, seal_cache
from pipeline.conveyor import embed_unit
from pipeline.decode import DecodePolicy
from pipeline.errors import BeamclipError, DataError, LossesError
from pipeline.manifest import agree, plan_manifest
from pipeline.options import options
from pipeline.prompts import (
    PromptOptions,
    PromptSet,
    check_class_order,
    load_prompts,
    prompt_set,
)
from pipeline.resident import resident_fingerprint, resident_teacher
from pipeline.schedule import Schedule
from pipeline.shards import Shard
from pipeline.teacher import Teacher, TeacherOptions, check_teacher
from pipeline.unit import UnitJob, UnitReport

_log = logging.getLogger(__name__)


@options
class CacheOptions:
    """Everything that decides what stage one writes."""

    teacher: TeacherOptions
    schedule: Schedule
    views: int
    prompts: PromptOptions
    decode: DecodePolicy
    max_skip_fraction: float = 0.01


@dataclass
class CacheReport:
    """What one run of stage one did; counts are of the whole cache."""

    cache: str
    units: int
    made: int
    views: int
    seconds: float
    anchors: list[str] = field(default_factory=list)
    counts: dict[str, SplitCounts] = field(default_factory=dict)

    def as_mapping(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    def text(self) -> str:
        """Say what was done, and every reason for which samples were skipped."""
        lines = [
            f"cache {self.cache}: {self.units} units ({self.made} made now, {self.views} views in "
            f"{self.seconds:.1f} s), sealed; anchors: {', '.join(self.anchors)}"
        ]
        for split, count in self.counts.items():
            reasons = "".join(f", {reason} {n}" for reason, n in count.reasons.most_common())
            lines.append(f"  {split}: {count.seen} samples, {count.skipped} skipped{reasons}")
        return "\n".join(lines)


def build_cache(
    cache: Path,
    shards: Sequence[Shard],
    spec: CacheOptions,
    *,
    recipe: Mapping[str, Any],
    workers: int = 0,
    device: str = "auto",
    redo: Collection[str] = (),
) -> CacheReport:
    """Make, or go on making, the cache of these shards; publish units, anchors and the seal.

    workers: 0 works in this process, else that many dask processes. redo: names of published units
    to make anew, once the cache is known to be of this recipe. Raises CacheMismatchError if
    the cache was made from something else, DataError or TeacherError before anything is written,
    LossesError if units failed or too many samples were
    skipped: the rest is published all the same, and a rerun redoes only what is missing.
    """
    began = time.monotonic()
    sets = _prompt_sets(spec.prompts, shards)
    check_teacher(spec.teacher)
    writer.check_place(cache)
    with writer.exclusive(cache):
        writer.sweep(cache)
        plan = _plan(shards, spec, device, recipe)
        manifest = agree(cache, plan, shards)
        for item in sets:
            embed_prompt_set(cache, resident_teacher(spec.teacher, device), manifest, item)
        jobs = _missing(cache, manifest, shards, spec, device, redo)
        if jobs:
            writer.unseal(cache, manifest["generation"])
        done = _run(jobs, manifest, workers, spec.teacher.threads)
        counts = seal_cache(cache, manifest, spec.max_skip_fraction)
    return CacheReport(
        cache=str(cache),
        units=len(layout.planned_units(manifest)),
        made=len(done),
        views=sum(report.views for report in done),
        seconds=time.monotonic() - began,
        anchors=[item.name for item in sets],
        counts=counts,
    )


def embed_prompt_set(
    cache: Path, teacher: Teacher, manifest: Mapping[str, Any], prompts: PromptSet
) -> bool:
    """Publish a prompt set's anchors: per class the mean over templates, normalised.

    Returns False if the cache has it already; raises CacheMismatchError if under that name it has
    other texts, DataError for texts that the teacher would cut.
    """
    if (cache / "anchors" / prompts.name / "zarr.json").exists():
        cached_anchors(cache, manifest, prompts)
        return False
    token_counts = _count_tokens(teacher, prompts)
    embeddings_CD = np.stack(
        [teacher.embed_texts(texts).numpy().mean(axis=0) for texts in prompts.texts]
    )
    embeddings_CD /= np.linalg.norm(embeddings_CD, axis=1, keepdims=True)
    if not np.isfinite(embeddings_CD).all():
        raise DataError(f"prompt set {prompts.name}: the teacher gave a vector that is not finite")
    arrays = {
        "embeddings": embeddings_CD.astype(np.float32),
        "class_names": np.array(prompts.class_names, dtype=object),
        "texts": np.array(prompts.texts, dtype=object),
        "token_counts": token_counts,
    }
    attributes = {
        "templates": list(prompts.templates),
        "teacher": layout.teacher_digest(manifest["teacher"]),
    }
    return writer.publish_anchors(cache, prompts.name, arrays, attributes)


def _count_tokens(teacher: Teacher, prompts: PromptSet) -> np.ndarray:
    """Count tokens per text, int32 [C,T]; a text that would be cut silently is an error."""
    counts = [[teacher.count_tokens(text) for text in texts] for texts in prompts.texts]
    for texts, row in zip(prompts.texts, counts, strict=True):
        for text, count in zip(texts, row, strict=True):
            if count > teacher.max_tokens:
                raise DataError(
                    f"prompt set {prompts.name}: {text[:60]!r}... has {count} tokens, the teacher "
                    f"reads {teacher.max_tokens}: shorten the description"
                )
    return np.array(counts, np.int32)


def _prompt_sets(spec: PromptOptions, shards: Sequence[Shard]) -> list[PromptSet]:
    """Return every set of the prompt file; a mistyped name is told now, not by training."""
    prompts = load_prompts(spec.file)
    check_class_order(prompts, shards)
    for name in (spec.anchors, spec.zeroshot):
        prompt_set(prompts, name)
    return [prompt_set(prompts, name) for name in prompts.prompt_sets]


def _plan(
    shards: Sequence[Shard], spec: CacheOptions, device: str, recipe: Mapping[str, Any]
) -> dict[str, Any]:
    batch = {
        "size": spec.teacher.batch_size,
        "threads": spec.teacher.threads,
        "device": runtime.pick_device(device).type,
    }
    teacher = resident_fingerprint(spec.teacher, device)
    return plan_manifest(shards, teacher, batch, spec.schedule, spec.views, spec.decode, recipe)


def _missing(
    cache: Path,
    manifest: Mapping[str, Any],
    shards: Sequence[Shard],
    spec: CacheOptions,
    device: str,
    redo: Collection[str],
) -> list[UnitJob]:
    """Return a job for every planned unit that is not published, or to be redone.

    What stands in the way is moved off.
    """
    fingerprint = layout.fingerprint(manifest)
    by_name = {(shard.split, shard.name): shard for shard in shards}
    jobs = []
    for unit in layout.planned_units(manifest):
        published = layout.unit_attributes(cache, unit, fingerprint) is not None
        if published and unit.name not in redo:
            continue
        if (cache / "units" / unit.name).exists():
            writer.drop_unit(cache, unit.name)
        jobs.append(
            UnitJob(
                cache=cache,
                unit=unit,
                shard=by_name[unit.split, unit.shard],
                teacher=spec.teacher,
                device=device,
                teacher_digest=layout.teacher_digest(manifest["teacher"]),
                fingerprint=fingerprint,
                schedule=manifest["schedules"][unit.schedule],
                decode=spec.decode,
            )
        )
    return jobs


def _run(
    jobs: Sequence[UnitJob], manifest: Mapping[str, Any], workers: int, threads: int
) -> list[UnitReport]:
    """Do the jobs; raises LossesError naming every unit that failed, after all others are done."""
    done: list[UnitReport] = []
    failed: list[str] = []
    began, views = time.monotonic(), 0
    # Samples are counted only as shards are read, so the bar moves by bytes x views.
    total = sum(job.shard.size_bytes * job.unit.num_views for job in jobs)
    with runtime.progress("embedding", total, None) as advance:

        def listen(progress: tuple[int, int]) -> None:
            nonlocal views
            views += progress[1]
            advance(progress[0], f"{views / (time.monotonic() - began):,.0f} views/s")

        for job, outcome in runtime.run_jobs(
            embed_unit, jobs, workers=workers, threads=threads, listen=listen
        ):
            if isinstance(outcome, BeamclipError):
                failed.append(f"  {job.unit.name}: {outcome}")
            elif isinstance(outcome, BaseException):
                _log.debug("unit %s failed", job.unit.name, exc_info=outcome)
                failed.append(f"  {job.unit.name}: {type(outcome).__name__}: {outcome}")
            else:
                done.append(outcome)
    if failed:
        units = len(layout.planned_units(manifest))
        raise LossesError(
            "\n".join(
                [
                    f"{len(failed)} of {units} units failed; the others are published, the cache "
                    "is not sealed. Mend the cause and run again:",
                    *sorted(failed),
                ]
            )
        )
    return done
