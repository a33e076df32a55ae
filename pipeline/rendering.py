"""Renders samples into a slab of memory that several processes share.

Shape letters: R slots of the slab, V views of a sample, S side of a view, P view parameters.
"""

import mmap
import os
from dataclasses import dataclass

import numpy as np
import torch

from pipeline import durable
from pipeline.decode import DecodePolicy, SourceImage
from pipeline.errors import SampleError
from pipeline.schedule import AnySchedule, ViewParams
from pipeline.shards import content_digest
from pipeline.views import render_geometry

_NUM_PARAMS = len(ViewParams._fields)


@dataclass(frozen=True)
class RenderPlan:
    """What is rendered of every sample of a unit: views first to last, at `size` pixels a side.

    ring: how many of the slab's slots are used, over and over.
    """

    schedule: AnySchedule
    first: int
    last: int
    decode: DecodePolicy
    size: int
    ring: int


@dataclass(frozen=True)
class Request:
    """One sample to render: view v goes to slot (slot + v) modulo the ring."""

    slot: int
    key: str
    encoded: bytes


@dataclass(frozen=True)
class Rendered:
    """What became of a request; a reason says why the sample has no views."""

    width: int = 0
    height: int = 0
    digest: int = 0
    reason: str = ""
    detail: str = ""


class Slab:
    """Slots for views before photometry, and for what decided them; in anonymous shared memory.

    views_R3SS: uint8 tensor, channels_last. params_RP: float32 array. Nothing of it outlives its
    processes.
    """

    def __init__(self, slots: int, size: int, descriptor: int | None = None) -> None:
        """Make a slab, or map the one behind another process's descriptor."""
        self.descriptor = -1
        view_bytes, param_bytes = 3 * size * size, 4 * _NUM_PARAMS
        total = slots * (view_bytes + param_bytes)
        self.slots, self.size = slots, size
        if descriptor is None:
            self.descriptor = os.memfd_create("beamclip-views")
            _reserve(self.descriptor, total)
        else:
            self.descriptor = descriptor
        memory = np.frombuffer(mmap.mmap(self.descriptor, total), np.uint8)
        params = memory[: slots * param_bytes].view(np.float32)
        self.params_RP = params.reshape(slots, _NUM_PARAMS)
        views_RSS3 = memory[slots * param_bytes :].reshape(slots, size, size, 3)
        self.views_R3SS = torch.from_numpy(views_RSS3).permute(0, 3, 1, 2)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def _reserve(descriptor: int, total_bytes: int) -> None:
    try:
        os.ftruncate(descriptor, total_bytes)
    except OSError as error:
        what = f"{total_bytes / 1e6:.3g} MB of memory for views, which `ulimit -f` limits too"
        raise OSError(error.errno, error.strerror, what) from None


def render_into(slab: Slab, plan: RenderPlan, request: Request) -> Rendered:
    """Render a sample's views into its slots; a sample that cannot be used gives the reason."""
    durable.fault_point(f"decode-{request.key}")
    digest = content_digest(request.encoded)
    try:
        image = SourceImage(request.encoded, plan.decode)
        params = [
            plan.schedule.params(request.key, view, image.width, image.height)
            for view in range(plan.first, plan.last + 1)
        ]
        slots = np.arange(request.slot, request.slot + len(params)) % plan.ring
        slab.params_RP[slots] = params
        for slot, view in zip(slots.tolist(), params, strict=True):
            render_geometry(image, [view], plan.size, out=slab.views_R3SS[slot : slot + 1])
    except SampleError as error:
        return Rendered(digest=digest, reason=error.reason, detail=error.detail)
    return Rendered(image.width, image.height, digest)
