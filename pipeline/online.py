"""Trains with targets that the live teacher makes as training goes: a reference for the cache.

The same rows, views and order as from the cache, so that nothing but the targets' rounding and the
cost differ. Shape letters: B batch, D teacher dimension.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from pipeline.audit.live import live_teacher, recorded_options
from pipeline.batches import ViewBatch
from pipeline.cache.reader import TargetCache
from pipeline.contracts import Keys
from pipeline.errors import StudentError
from pipeline.ranks import ranks_of_environment
from pipeline.runtime import pick_device
from pipeline.stage_two import LiveTargets
from pipeline.teacher import Teacher
from pipeline.train import TargetsSource


class OnlineTargets:
    """A targets source that takes views from another and targets from the teacher itself.

    source: makes views of the teacher's size too. What lies before the first step of a process is
    taken from the source (the cache), for losses with a bank.
    """

    def __init__(self, source: TargetsSource, teacher: Teacher, device: torch.device) -> None:
        self._source, self._teacher, self._device = source, teacher, device
        self.steps_per_epoch = source.steps_per_epoch

    def starting_at(self, step: int, stop: int) -> Iterator[ViewBatch]:
        """Yield the batches of steps `step` to `stop` - 1, with live targets."""
        for batch in self._source.starting_at(step, stop):
            views_B3SS = batch.views(self._device, self._teacher.preprocess.size)
            # Cloned: what inference mode made cannot take part in a backward pass.
            vectors_GD = self._teacher.encode_images(views_B3SS).cpu().clone()
            norms_G = vectors_GD.norm(dim=1)
            yield replace(batch, keys_GD=vectors_GD / norms_G[:, None], norms_B=norms_G)

    def keys_before(self, step: int, count: int) -> Keys:
        """Return the cached targets of the last `count` samples before a step."""
        return self._source.keys_before(step, count)


def live_targets(device: str) -> LiveTargets:
    """Return what puts the live teacher's targets in place of a cache's.

    The teacher is the one that made the cache, by its hash. Raises StudentError under torchrun,
    CacheMismatchError for another teacher.
    """
    if ranks_of_environment().size > 1:
        raise StudentError("--online is a reference for one process: leave torchrun out")

    def over(source: TargetsSource, cache: TargetCache) -> TargetsSource:
        spec = recorded_options(cache.path, cache.manifest).teacher
        teacher = live_teacher(cache.path, cache.manifest, spec, device)
        return OnlineTargets(source, teacher, pick_device(device))

    return over
