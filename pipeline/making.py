"""Makes units where a place says: in this process, on local workers or on a running cluster."""

import contextlib
import logging
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from socket import gethostname
from typing import Any

from pipeline import runtime, storage
from pipeline.cache import layout
from pipeline.cluster import Place
from pipeline.conveyor import embed_unit, embed_units
from pipeline.dispatch import worth_retrying
from pipeline.engine import run_jobs
from pipeline.errors import BeamclipError, LossesError, StorageError, WorkerError
from pipeline.shards import Shard
from pipeline.teacher import LOCAL_DIR
from pipeline.unit import UnitJob, UnitReport

_log = logging.getLogger(__name__)
_MOST_RENDERERS = 16  # by default; each takes about 300 MB


def renderers_of(place: Place, shards: Sequence[Shard]) -> int:
    """Return how many processes render for one that embeds.

    By default none for little data, one for each worker of a running cluster, whose machines are
    not known here, and else one per core, shared out among the workers.
    """
    if place.renderers is not None:
        return place.renderers
    if sum(shard.size_bytes for shard in shards) < runtime.LITTLE_BYTES:
        return 0
    if place.is_running_cluster:
        return 1
    cores = min(runtime.available_cores(), _MOST_RENDERERS)
    return max(1, cores // max(1, place.workers))


def make_units(
    jobs: Sequence[UnitJob], manifest: Mapping[str, Any], place: Place
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

        outcomes = _outcomes(jobs, manifest, place, listen)
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


def _outcomes(
    jobs: Sequence[UnitJob], manifest: Mapping[str, Any], place: Place, listen: runtime.Send
) -> Generator[tuple[UnitJob, UnitReport | BaseException], None, None]:
    """Do the jobs where the place says. Here they overlap; what may pass is tried again after."""
    work, left = _embed_there, [_portable(job) for job in jobs]
    if place.is_here:
        work, left = embed_unit, []
        for job, outcome in embed_units(jobs, listen):
            if isinstance(outcome, StorageError):
                raise outcome
            if isinstance(outcome, Exception) and worth_retrying(outcome):
                left.append(job)
            else:
                yield job, outcome
    yield from run_jobs(
        work,
        left,
        place=place,
        threads=manifest["batch"]["threads"],
        libraries=manifest["libraries"],
        listen=listen,
    )


def _reason(job: UnitJob, error: BaseException) -> str:
    """Say what a unit met; an OSError names its file, which reading alone leaves out."""
    if isinstance(error, BeamclipError):
        return str(error)
    where = f"{job.shard}: " if isinstance(error, OSError) and not error.filename else ""
    return f"{type(error).__name__}: {where}{error}"


def _portable(job: UnitJob) -> UnitJob:
    """Make the job's paths absolute: a worker may stand in another folder."""
    teacher = job.teacher
    if (teacher.pretrained or "").startswith(LOCAL_DIR):
        teacher = replace(teacher, pretrained=_absolute(teacher.pretrained))
    if teacher.model.startswith(LOCAL_DIR):
        teacher = replace(teacher, model=_absolute(teacher.model))
    return replace(
        job,
        cache=job.cache.absolute(),
        shard=replace(job.shard, location=storage.absolute(job.shard.location)),
        teacher=teacher,
    )


def _absolute(local_dir: str | None) -> str:
    return f"{LOCAL_DIR}{Path((local_dir or '').removeprefix(LOCAL_DIR)).absolute()}"


def _embed_there(job: UnitJob, send: runtime.Send) -> UnitReport:
    """On a worker: make a unit, if the worker sees the very cache and not a folder of its own."""
    if not (job.cache / "manifest").is_dir():
        raise WorkerError(
            f"{gethostname()} sees no cache at {job.cache}: mount it there under the same path"
        )
    return embed_unit(job, send)
