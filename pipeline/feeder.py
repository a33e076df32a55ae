"""Reads shards and has their samples rendered, ahead of the device, in a thread of its own.

Views wait in a ring of batches, in the slab that the renderers fill; a slot whose params are NaN
holds none.
"""

import queue
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from pipeline import durable
from pipeline.errors import SampleError
from pipeline.rendering import Rendered, RenderPlan, Request
from pipeline.renderpool import Renderers, RenderersError
from pipeline.shards import Sample, read_samples
from pipeline.teacher import Teacher
from pipeline.unit import UnitJob, UnitRows

_LEAVING_SECONDS = 10.0


class Unit:
    """A unit on its way: its rows, and the first error that it met."""

    def __init__(self, rows: UnitRows, plan: RenderPlan, first_slot: int) -> None:
        self.rows, self.plan, self.first_slot = rows, plan, first_slot
        self.num_views = rows.job.unit.num_views
        self.error: Exception | None = None
        self.shard_sha256 = ""
        self.told = 0


@dataclass(eq=False)
class Batch:
    """A batch of one unit: `answered` of its `asked` views are rendered or given up."""

    unit: Unit
    first_slot: int
    asked: int = 0
    answered: int = 0
    closed: bool = False

    @property
    def is_ready(self) -> bool:
        return self.closed and self.answered == self.asked


class _StoppedError(Exception):
    """Nobody waits for what the feeder feeds."""


class Feeder(threading.Thread):
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
        self.ready: queue.SimpleQueue[Batch | Unit | Exception | None] = queue.SimpleQueue()
        self._jobs, self._renderers, self._teacher = jobs, renderers, teacher
        self._ring, self._batch_size = ring, batch_size
        self._next_slot, self._released = 0, 0
        self._batches: dict[int, Batch] = {}  # by first slot; not yet ready
        self._coming: deque[Batch | Unit] = deque()
        self._asked: dict[int, tuple[Unit, int]] = {}  # slot -> unit, ordinal
        self._stopping = False

    def __enter__(self) -> "Feeder":
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
        unit = Unit(UnitRows(job, self._teacher.dim), plan, self._next_slot)
        durable.fault_point(f"in-{job.unit.name}")
        try:
            self._read(unit)
        except (_StoppedError, RenderersError):
            raise
        except Exception as error:
            unit.error = unit.error or error
        self._end(unit)

    def _read(self, unit: Unit) -> None:
        shard, digest = unit.rows.job.shard, sha256()
        for sample in read_samples(shard, digest, max_image_bytes=unit.plan.decode.max_bytes):
            self._add(unit, sample)
        unit.shard_sha256 = digest.hexdigest()

    def _add(self, unit: Unit, sample: Sample) -> None:
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

    def _ask(self, unit: Unit, ordinal: int) -> int:
        """Take the next slots for a sample, once the ring has room for them; return the first."""
        slot, end = self._next_slot, self._next_slot + unit.num_views
        while -(-end // self._batch_size) * self._batch_size > self._released + self._ring:
            self._collect(block=True)
        self._asked[slot] = unit, ordinal
        for place in range(slot, end):
            first = place - place % self._batch_size
            if first not in self._batches:
                self._batches[first] = Batch(unit, first)
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
        unit.rows.rendered(ordinal, rendered)
        for place in range(slot, slot + unit.num_views):
            if rendered.reason:
                self._renderers.slab.params_RP[place % self._ring] = np.nan
            self._batches[place - place % self._batch_size].answered += 1
        self._pass_on()

    def _end(self, unit: Unit) -> None:
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
            if isinstance(item, Batch):
                if not item.is_ready:
                    return
                del self._batches[item.first_slot]
            self.ready.put(self._coming.popleft())
