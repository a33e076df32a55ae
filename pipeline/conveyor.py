"""Carries samples from shards through renderers and teacher to published units, all at once.

A thread reads shards and keeps the renderers busy, ahead of the device across the ends of units;
the calling thread embeds full batches; another publishes. Views wait in a ring of batches. Shape
letters: B batch, V views of a sample, S side in pixels, P view parameters, D teacher dimension.
"""

import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch

from pipeline import durable, runtime
from pipeline.cache import layout
from pipeline.errors import SampleError, TeacherError
from pipeline.photometry import apply_photometry
from pipeline.rendering import Rendered, RenderPlan, Request, Slab
from pipeline.renderpool import Renderers, RenderersError
from pipeline.resident import renderers_in_use, resident_fingerprint, resident_teacher
from pipeline.schedule import ViewParams
from pipeline.shards import Sample, read_samples
from pipeline.teacher import Teacher
from pipeline.unit import UnitJob, UnitReport, UnitRows

_SPARE_BATCHES = 4  # of the ring, beside those that the renderers are filling
# Samples that the ring has room for, for each renderer: fewer where they have many views.
_LEAST_AHEAD, _MOST_AHEAD, _VIEWS_AHEAD = 2, 6, 48
_LEAVING_SECONDS = 10.0
_IDENTITY = np.array(ViewParams(), np.float32)


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
    feeder = _Feeder(jobs, renderers, ring, size, teacher)
    device = _Device(teacher, runtime.pick_device(jobs[0].device), renderers.slab, size, ring)
    publishing: deque[tuple[UnitJob, Future[UnitReport]]] = deque()
    with ThreadPoolExecutor(1) as publisher, feeder:
        while (item := feeder.ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            for batch in device.embed(item) if isinstance(item, _Batch) else device.finish():
                _tell(batch, meter)
                feeder.release()
            if isinstance(item, _Unit):
                if item.error is not None:
                    yield item.rows.job, item.error
                else:
                    publishing.append((item.rows.job, publisher.submit(_publish, item)))
            while publishing and (len(publishing) > 1 or publishing[0][1].done()):
                yield _outcome(*publishing.popleft())
        meter.flush()
        for job, future in publishing:
            yield _outcome(job, future)


def _publish(unit: "_Unit") -> UnitReport:
    return unit.rows.publish(unit.shard_sha256)


def _outcome(job: UnitJob, future: Future[UnitReport]) -> tuple[UnitJob, UnitReport | Exception]:
    try:
        return job, future.result()
    except Exception as error:  # whatever one unit meets is its own
        return job, error


def _tell(batch: "_Batch", meter: runtime.Meter) -> None:
    """Report a batch that is done: the bytes of the tar that it took the unit on by, and views."""
    unit, num_views = batch.unit, batch.unit.num_views
    last = (batch.first_slot + batch.asked - 1 - unit.first_slot) // num_views
    end = unit.rows.end_of(last)
    meter.add((end - unit.told) * num_views, batch.asked)
    unit.told = end


class _Unit:
    """A unit on its way: its rows, and the first error that it met."""

    def __init__(self, rows: UnitRows, plan: RenderPlan, first_slot: int) -> None:
        self.rows, self.plan, self.first_slot = rows, plan, first_slot
        self.num_views = rows.job.unit.num_views
        self.error: Exception | None = None
        self.shard_sha256 = ""
        self.told = 0


@dataclass(eq=False)
class _Batch:
    """A batch of one unit: `answered` of its `asked` views are rendered or given up."""

    unit: _Unit
    first_slot: int
    asked: int = 0
    answered: int = 0
    closed: bool = False

    @property
    def is_ready(self) -> bool:
        return self.closed and self.answered == self.asked


class _Device:
    """Embeds batches; on a GPU, one is computed while the one before it is fetched."""

    def __init__(
        self, teacher: Teacher, device: torch.device, slab: Slab, batch_size: int, ring: int
    ) -> None:
        self._teacher, self._device, self._slab = teacher, device, slab
        self._batch_size, self._ring = batch_size, ring
        self._running: deque[tuple[_Batch, torch.Tensor]] = deque()

    def embed(self, batch: _Batch) -> list[_Batch]:
        """Begin a batch; return those whose vectors have reached their rows."""
        start = batch.first_slot % self._ring
        slots = slice(start, start + self._batch_size)
        views_B3SS, params_BP = self._slab.views_R3SS[slots], self._slab.params_RP[slots]
        views_B3SS[batch.asked :] = 0
        params_BP[batch.asked :] = _IDENTITY
        vectors_BD = torch.empty(0)
        if batch.unit.error is None:
            try:
                vectors_BD = self._forward(views_B3SS, params_BP)
            except Exception as error:  # whatever one unit meets is its own
                batch.unit.error = error
        self._running.append((batch, vectors_BD))
        return self._fetch(keep=0 if self._device.type == "cpu" else 1)

    def finish(self) -> list[_Batch]:
        """Return what is still being computed, done."""
        return self._fetch(keep=0)

    def _forward(self, views_B3SS: torch.Tensor, params_BP: np.ndarray) -> torch.Tensor:
        """Return [B,D]; a device short of memory gets half as much at a time."""
        try:
            views = views_B3SS.to(self._device, non_blocking=True)
            return self._teacher.embed_images(apply_photometry(views, params_BP))
        except torch.OutOfMemoryError:
            half = len(views_B3SS) // 2
            if half == 0:
                raise
        parts = (slice(None, half), slice(half, None))
        return torch.cat([self._forward(views_B3SS[part], params_BP[part]) for part in parts])

    def _fetch(self, keep: int) -> list[_Batch]:
        done = []
        while len(self._running) > keep:
            batch, vectors_BD = self._running.popleft()
            if batch.unit.error is None:
                self._hand_out(batch, vectors_BD[: batch.asked].cpu().numpy())
            done.append(batch)
        return done

    def _hand_out(self, batch: _Batch, vectors_BD: np.ndarray) -> None:
        """Give each sample the vectors of its views."""
        rows, num_views = batch.unit.rows, batch.unit.num_views
        place = batch.first_slot - batch.unit.first_slot
        end = place + len(vectors_BD)
        first = place
        while place < end:
            ordinal, view = divmod(place, num_views)
            following = min(end, place - view + num_views)
            if not rows.is_skipped(ordinal):
                rows.embedded(ordinal, view, vectors_BD[place - first : following - first])
            place = following


class _StoppedError(Exception):
    """Nobody waits for what the feeder feeds."""


class _Feeder(threading.Thread):
    """Reads shards and has them rendered; puts full batches and ended units into `ready`.

    Slots are counted up without end; the slab holds them modulo the ring. Batches never cross
    units, and a sample's place in them follows from its ordinal alone.
    """

    def __init__(
        self,
        jobs: Sequence[UnitJob],
        renderers: Renderers,
        ring: int,
        batch_size: int,
        teacher: Teacher,
    ) -> None:
        super().__init__(name="beamclip-feeder", daemon=True)
        self.ready: queue.SimpleQueue[_Batch | _Unit | Exception | None] = queue.SimpleQueue()
        self._jobs, self._renderers, self._teacher = jobs, renderers, teacher
        self._ring, self._batch_size = ring, batch_size
        self._next_slot, self._released = 0, 0
        self._batches: dict[int, _Batch] = {}  # by first slot; not yet ready
        self._coming: deque[_Batch | _Unit] = deque()
        self._asked: dict[int, tuple[_Unit, int]] = {}  # slot -> unit, ordinal
        self._stopping = False

    def __enter__(self) -> "_Feeder":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._renderers.wake()
        self.join(_LEAVING_SECONDS)  # longer only in a read that does not return

    def release(self) -> None:
        """Give back the slots of the batch that has been in `ready` longest."""
        self._released += self._batch_size
        self._renderers.wake()

    def run(self) -> None:
        """Feed until the jobs are done, or the feeder is left."""
        try:
            for job in self._jobs:
                self._feed(job)
            while self._asked:
                self._collect(block=True)
            self.ready.put(None)
        except _StoppedError:
            pass
        except Exception as error:  # the renderers': it concerns every unit
            self.ready.put(error)

    def _feed(self, job: UnitJob) -> None:
        """Read one shard to its end; what is wrong with it ends its unit alone."""
        plan = job.plan(self._teacher.preprocess.size, self._ring)
        unit = _Unit(UnitRows(job, self._teacher.dim), plan, self._next_slot)
        durable.fault_point(f"in-{job.unit.name}")
        try:
            self._read(unit)
        except (_StoppedError, RenderersError):
            raise
        except Exception as error:
            unit.error = unit.error or error
        self._end(unit)

    def _read(self, unit: _Unit) -> None:
        shard, digest = unit.rows.job.shard, sha256()
        for sample in read_samples(shard, digest, max_image_bytes=unit.plan.decode.max_bytes):
            self._add(unit, sample)
        unit.shard_sha256 = digest.hexdigest()

    def _add(self, unit: _Unit, sample: Sample) -> None:
        """Add a row for the sample, and have its views rendered, or say why not."""
        unit.rows.add(sample)
        slot = self._ask(unit, sample.ordinal)
        try:
            image = sample.image()
            unit.rows.describe(sample.ordinal, image)
            unit.rows.describe(sample.ordinal, image, sample.label())
            encoded = image.content
        except SampleError as error:
            self._answer(slot, Rendered(reason=error.reason, detail=error.detail))
            return
        while not self._renderers.has_room():
            self._collect(block=True)
        try:
            self._renderers.submit(unit.plan, Request(slot, sample.key, encoded))
        except RenderersError:
            raise
        except Exception as error:  # it will not be given back, and the batch must not wait for it
            self._answer(slot, Rendered(reason="failed", detail=type(error).__name__))
            raise
        self._collect(block=False)

    def _ask(self, unit: _Unit, ordinal: int) -> int:
        """Take the next slots for a sample, once the ring has room for them; return the first."""
        slot, end = self._next_slot, self._next_slot + unit.num_views
        while -(-end // self._batch_size) * self._batch_size > self._released + self._ring:
            self._collect(block=True)
        self._asked[slot] = unit, ordinal
        for place in range(slot, end):
            first = place - place % self._batch_size
            if first not in self._batches:
                self._batches[first] = _Batch(unit, first)
                self._coming.append(self._batches[first])
            batch = self._batches[first]
            batch.asked += 1
            batch.closed = batch.asked == self._batch_size
        self._next_slot = end
        return slot

    def _collect(self, *, block: bool) -> None:
        for request, rendered in self._renderers.collect(block=block):
            self._answer(request.slot, rendered)
        if self._stopping:
            raise _StoppedError

    def _answer(self, slot: int, rendered: Rendered) -> None:
        """Record what became of a sample, and pass on the batches that this completes."""
        unit, ordinal = self._asked.pop(slot)
        slab, slots = self._renderers.slab, range(slot, slot + unit.num_views)
        places = np.array(slots) % self._ring
        if rendered.reason:
            slab.params_RP[places] = _IDENTITY
            slab.views_R3SS[torch.from_numpy(places)] = 0
        unit.rows.rendered(ordinal, rendered, slab.params_RP[places])
        for place in slots:
            self._batches[place - place % self._batch_size].answered += 1
        self._pass_on()

    def _end(self, unit: _Unit) -> None:
        """Close the unit's last batch; the next unit begins with a batch of its own."""
        first = self._next_slot - self._next_slot % self._batch_size
        if first in self._batches:
            self._batches[first].closed = True
        self._next_slot = -(-self._next_slot // self._batch_size) * self._batch_size
        self._coming.append(unit)
        self._pass_on()

    def _pass_on(self) -> None:
        while self._coming:
            item = self._coming[0]
            if isinstance(item, _Batch):
                if not item.is_ready:
                    return
                del self._batches[item.first_slot]
            self.ready.put(self._coming.popleft())
