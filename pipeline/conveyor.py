"""Carries samples from shards through renderers and teacher to published units, all at once.

A thread reads shards and keeps the renderers busy, ahead of the device across the ends of units;
the calling thread embeds full batches; another fills rows and publishes. Views wait in a ring of
batches. Shape letters: B batch, V views of a sample, S side in pixels, P view parameters, D teacher
dimension.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from pipeline import runtime
from pipeline.cache import layout
from pipeline.errors import TeacherError
from pipeline.feeder import Batch, Feeder, Unit
from pipeline.photometry import apply_photometry
from pipeline.rendering import Slab
from pipeline.renderpool import Renderers
from pipeline.resident import renderers_in_use, resident_fingerprint, resident_teacher
from pipeline.schedule import ViewParams
from pipeline.teacher import Teacher
from pipeline.transfers import Arriving, Bringing, page_locked
from pipeline.unit import UnitJob, UnitReport

_IDENTITY = np.array(ViewParams(), np.float32)
_SPARE_BATCHES = 4  # of the ring, beside those that the renderers are filling
# Samples that the ring has room for, for each renderer: fewer where they have many views.
_LEAST_AHEAD, _MOST_AHEAD, _VIEWS_AHEAD = 2, 6, 48


def embed_unit(job: UnitJob, send: runtime.Send) -> UnitReport:
    """Make and publish one unit; raises ShardError, TeacherError, CacheError or OSError.

    send: told now and then how many (bytes of the tar x views, views) were done since last.
    """
    ((_, outcome),) = embed_units([job], send)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def embed_units(
    jobs: Sequence[UnitJob], send: runtime.Send
) -> Iterator[tuple[UnitJob, UnitReport | Exception]]:
    """Make and publish units, the next being read while the last is embedded and written.

    jobs: of one teacher and device. Yields (job, report or what it failed of) as units end.
    """
    if not jobs:
        return
    first = jobs[0]
    teacher = resident_teacher(first.teacher, first.device)
    found = layout.teacher_digest(resident_fingerprint(first.teacher, first.device))
    if found != first.teacher_digest:
        what = (
            f"the teacher here ({first.teacher.model}) is not the one of the cache's manifest: its "
            "weights, architecture or preprocessing changed since"
        )
        yield from ((job, TeacherError(what)) for job in jobs)
        return
    with runtime.torch_threads(first.teacher.threads):
        yield from carry_units(jobs, teacher, send)


def carry_units(
    jobs: Sequence[UnitJob], teacher: Teacher, send: runtime.Send
) -> Iterator[tuple[UnitJob, UnitReport | Exception]]:
    """Make and publish units with a teacher that is known to be the right one."""
    meter = runtime.Meter(send)
    size, processes = jobs[0].teacher.batch_size, jobs[0].renderers
    most_views = max(job.unit.num_views for job in jobs)
    ahead = max(_LEAST_AHEAD, min(_MOST_AHEAD, _VIEWS_AHEAD // most_views))
    batches = -(-(max(processes, 1) * ahead + 1) * most_views // size) + _SPARE_BATCHES
    ring = batches * size
    with renderers_in_use(processes, ring, teacher.preprocess.size) as renderers:
        yield from _carry(jobs, teacher, meter, renderers, ring)


def _carry(
    jobs: Sequence[UnitJob],
    teacher: Teacher,
    meter: runtime.Meter,
    renderers: Renderers,
    ring: int,
) -> Iterator[tuple[UnitJob, UnitReport | Exception]]:
    size = jobs[0].teacher.batch_size
    feeder = Feeder(jobs, renderers, ring, size, teacher)
    on = runtime.pick_device(jobs[0].device)
    device = Device(teacher, on, renderers.slab, size, ring)
    publishing: deque[tuple[UnitJob, _Publishing]] = deque()
    with (
        page_locked(renderers.slab.views_R3SS, on),
        ThreadPoolExecutor(1) as publisher,
        ThreadPoolExecutor(1) as keeper,
        feeder,
    ):
        while (item := feeder.ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            for done in device.embed(item) if isinstance(item, Batch) else device.finish():
                keeper.submit(_keep, done, feeder)
                _tell(done.batch, meter)
            if isinstance(item, Unit):  # by way of the keeper: after all its rows
                handed_on = keeper.submit(publisher.submit, _publish, item)
                publishing.append((item.rows.job, handed_on))
            while publishing and (len(publishing) > 1 or _is_over(publishing[0][1])):
                yield _outcome(*publishing.popleft())
        meter.flush()
        for job, handed_on in publishing:
            yield _outcome(job, handed_on)


_Publishing = Future[Future[UnitReport]]


def _keep(done: "Embedded", feeder: Feeder) -> None:
    """Give back a batch's slots and put its vectors into their rows.

    Not the embedding thread's work: whatever wakes another thread may keep a device waiting.
    """
    unit = done.batch.unit
    feeder.release()
    try:
        if unit.error is None:
            unit.rows.embedded(done.params_BP, done.vectors_BD)
    except Exception as error:  # whatever one unit meets is its own
        unit.error = error


def _publish(unit: Unit) -> UnitReport:
    if unit.error is not None:
        raise unit.error
    return unit.rows.publish(unit.shard_sha256)


def _is_over(publishing: _Publishing) -> bool:
    return publishing.done() and publishing.result().done()


def _outcome(job: UnitJob, publishing: _Publishing) -> tuple[UnitJob, UnitReport | Exception]:
    try:
        return job, publishing.result().result()
    except Exception as error:  # whatever one unit meets is its own
        return job, error


def _tell(batch: Batch, meter: runtime.Meter) -> None:
    """Report a batch that is done: the bytes of the tar that it took the unit on by, and views."""
    unit, num_views = batch.unit, batch.unit.num_views
    last = (batch.first_slot + batch.asked - 1 - unit.first_slot) // num_views
    end = unit.rows.end_of(last)
    meter.add((end - unit.told) * num_views, batch.asked)
    unit.told = end


@dataclass(eq=False)
class Embedded:
    """A batch whose views were embedded, or given up with their unit. B: the views asked for.

    params_BP: float32; NaN for what has no view. vectors_BD: float32, not normalised.
    """

    batch: Batch
    params_BP: np.ndarray
    vectors_BD: np.ndarray


class Device:
    """Embeds batches; on a GPU, one is computed while the next is brought and the last fetched."""

    def __init__(
        self, teacher: Teacher, device: torch.device, slab: Slab, batch_size: int, ring: int
    ) -> None:
        self._teacher, self._device, self._slab = teacher, device, slab
        self._batch_size, self._ring = batch_size, ring
        self._bring = Bringing(device)
        self._running: deque[tuple[Batch, np.ndarray, Arriving]] = deque()

    def embed(self, batch: Batch) -> list[Embedded]:
        """Begin a batch; return those that are done."""
        start = batch.first_slot % self._ring
        slots = slice(start, start + self._batch_size)
        views_B3SS, params_BP = self._slab.views_R3SS[slots], self._slab.params_RP[slots].copy()
        params_BP[batch.asked :] = np.nan
        # Slots without a view are embedded as they are: every batch has one shape, and rows do not
        # depend on one another.
        safe_BP = np.where(np.isnan(params_BP), _IDENTITY, params_BP)
        vectors_BD = torch.empty(0)
        if batch.unit.error is None:
            try:
                vectors_BD = self._forward(views_B3SS, safe_BP)
            except Exception as error:  # whatever one unit meets is its own
                batch.unit.error = error
        self._running.append((batch, params_BP[: batch.asked], Arriving(vectors_BD)))
        return self._fetch(keep=0 if self._device.type == "cpu" else 1)

    def finish(self) -> list[Embedded]:
        """Return what is still being computed, done."""
        return self._fetch(keep=0)

    def _forward(self, views_B3SS: torch.Tensor, params_BP: np.ndarray) -> torch.Tensor:
        """Return [B,D]; a device short of memory gets half as much at a time."""
        try:
            views = self._bring(views_B3SS)
            return self._teacher.encode_images(apply_photometry(views, params_BP))
        except torch.OutOfMemoryError:
            half = len(views_B3SS) // 2
            if half == 0:
                raise
        parts = (slice(None, half), slice(half, None))
        return torch.cat([self._forward(views_B3SS[part], params_BP[part]) for part in parts])

    def _fetch(self, keep: int) -> list[Embedded]:
        done = []
        while len(self._running) > keep:
            batch, params_BP, vectors = self._running.popleft()
            done.append(Embedded(batch, params_BP, vectors.wait()[: batch.asked].numpy()))
        return done
