"""Stage one: streams shards through the teacher and leaves a sealed cache of targets."""

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from socket import gethostname
from typing import Any

import numpy as np

from pipeline import runtime
from pipeline.anchors import cached_anchors
from pipeline.cache import layout, writer
from pipeline.cache.seal import SplitCounts, seal_cache
from pipeline.cluster import HERE, Place, check_place
from pipeline.engine import run_jobs
from pipeline.errors import BeamclipError, DataError, LossesError, WorkerError
from pipeline.manifest import agree, plan_manifest
from pipeline.options import options
from pipeline.prompts import (
    PromptOptions,
    PromptSet,
    check_class_order,
    load_prompts,
    prompt_set,
)
from pipeline.schedule import Schedule
from pipeline.shards import Shard
from pipeline.teacher import LOCAL_DIR, Teacher, TeacherOptions, check_teacher
from pipeline.unit import UnitJob, UnitReport, embed_unit, resident_fingerprint, resident_teacher
from pipeline.views import DecodePolicy

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
    place: Place = HERE,
) -> CacheReport:
    """Make, or go on making, the cache of these shards; publish units, anchors and the seal.

    place: where units are made; it changes no number. Raises CacheMismatchError if the cache was
    made from something else, DataError or TeacherError before anything is written, LossesError if
    units failed or too many samples were skipped: the rest is published all the same; StorageError
    or ClusterError where going on makes no sense. A rerun redoes only what is missing.
    """
    began, device = time.monotonic(), place.device
    check_place(place)
    sets = _prompt_sets(spec.prompts, shards)
    check_teacher(spec.teacher)
    writer.check_place(cache)
    with writer.exclusive(cache):
        writer.sweep(cache)
        plan = _plan(shards, spec, device, recipe)
        manifest = agree(cache, plan, shards)
        for item in sets:
            embed_prompt_set(cache, resident_teacher(spec.teacher, device), manifest, item)
        jobs = _missing(cache, manifest, shards, spec, device)
        if jobs:
            writer.unseal(cache, manifest["generation"])
        done = _run(jobs, manifest, place)
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
) -> list[UnitJob]:
    """Return a job for every planned unit that is not published; what is damaged is moved away."""
    fingerprint = layout.fingerprint(manifest)
    by_name = {(shard.split, shard.name): shard for shard in shards}
    jobs = []
    for unit in layout.planned_units(manifest):
        if layout.unit_attributes(cache, unit, fingerprint) is not None:
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


def _run(jobs: Sequence[UnitJob], manifest: Mapping[str, Any], place: Place) -> list[UnitReport]:
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

        outcomes = run_jobs(
            embed_unit if place.is_here else _embed_there,
            jobs if place.is_here else [_portable(job) for job in jobs],
            place=place,
            threads=manifest["batch"]["threads"],
            libraries=manifest["libraries"],
            listen=listen,
        )
        with contextlib.closing(outcomes):
            for job, outcome in outcomes:
                if isinstance(outcome, BaseException):
                    _log.debug("unit %s failed", job.unit.name, exc_info=outcome)
                    failed.append(f"  {job.unit.name}: {_reason(job, outcome)}")
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


def _reason(job: UnitJob, error: BaseException) -> str:
    """Say what a unit met; an OSError names its file, which reading alone leaves out."""
    if isinstance(error, BeamclipError):
        return str(error)
    where = f"{job.shard.path}: " if isinstance(error, OSError) and not error.filename else ""
    return f"{type(error).__name__}: {where}{error}"


def _portable(job: UnitJob) -> UnitJob:
    """Make the job's paths absolute: a worker may stand in another folder."""
    model = job.teacher.model
    if model.startswith(LOCAL_DIR):
        model = f"{LOCAL_DIR}{Path(model.removeprefix(LOCAL_DIR)).absolute()}"
    return replace(
        job,
        cache=job.cache.absolute(),
        shard=replace(job.shard, path=job.shard.path.absolute()),
        teacher=replace(job.teacher, model=model),
    )


def _embed_there(job: UnitJob, send: runtime.Send) -> UnitReport:
    """On a worker: make a unit, if the worker sees the very cache and not a folder of its own."""
    if not (job.cache / "manifest").is_dir():
        raise WorkerError(
            f"{gethostname()} sees no cache at {job.cache}: mount it there under the same path"
        )
    return embed_unit(job, send)
