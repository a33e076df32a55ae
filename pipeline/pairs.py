"""Reads pairs of views from shards alone: each image twice, in a planned order.

The order of an epoch is a pure function of (seed, epoch), a view of (schedule, key, number); epoch
e takes the views 2e and 2e + 1 of every image. Shape letters: B images of a batch, S side in
pixels, P view parameters.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.decode import DecodePolicy, SourceImage
from pipeline.errors import BeamclipError, SampleError, ShardError, StudentError
from pipeline.order import plan_epoch
from pipeline.photometry import apply_photometry
from pipeline.schedule import Schedule, ViewParams
from pipeline.shards import Shard, read_samples
from pipeline.views import render_geometry

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairBatch:
    """Two views of each of B images before photometry; on the CPU.

    geometry: uint8 [2B,3,S,S], the first views of all images, then their second ones. params:
    float32 [2B,P]. unread: the images that could not be decoded, and why; they are not in B.
    """

    geometry: Tensor
    params: np.ndarray
    unread: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.params) // 2

    def views(self, device: torch.device) -> Tensor:
        """Return the finished views, uint8 [2B,3,S,S], on `device`."""
        return apply_photometry(self.geometry.to(device, non_blocking=True), self.params)


class Pairs:
    """The images of the train shards, as batches of pairs by their step number.

    Labels are not read. Raises ShardError for a damaged shard, StudentError for less than two
    images.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        schedule: Schedule,
        *,
        input_px: int,
        batch_size: int,
        seed: int,
        workers: int = 0,
    ) -> None:
        train = [shard for shard in shards if shard.split == "train"]
        images = [(number, *image) for number, s in enumerate(train) for image in _images(s)]
        if len(images) < 2:
            raise StudentError(
                f"found {len(images)} images in {len(train)} train shards: contrast takes two at "
                "least"
            )
        self._paths = [str(shard.path) for shard in train]
        self._keys = [key for _, key, _, _ in images]
        self._places = np.array([(s, offset, size) for s, _, offset, size in images], np.int64)
        self._schedule, self._input_px, self._policy = schedule, input_px, DecodePolicy()
        self._batch_size, self._seed, self._workers = batch_size, seed, workers
        self.steps_per_epoch = len(self._plan(0))

    def __len__(self) -> int:
        return len(self._places)

    def starting_at(self, step: int, stop: int) -> Iterator[PairBatch]:
        """Yield the batches of steps `step` to `stop` - 1."""
        loader: DataLoader[PairBatch | Exception] = DataLoader(
            _Steps(self, range(step, stop)),
            batch_size=None,
            num_workers=self._workers,
            collate_fn=None,
            multiprocessing_context="fork" if self._workers else None,
            generator=torch.Generator(),  # its own: by default each pass draws from the global one
        )
        for item in loader:
            if isinstance(item, Exception):
                raise item
            yield item

    def batch(self, step: int) -> PairBatch:
        """Render the pairs of one step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        views, params, unread = [], [], []
        for row in self._plan(epoch)[place]:
            try:
                image = SourceImage(self._encoded(row), self._policy)
                pair = [
                    self._schedule.params(self._keys[row], number, image.width, image.height)
                    for number in (2 * epoch, 2 * epoch + 1)
                ]
                views.append(render_geometry(image, pair, self._input_px))
                params.append(pair)
            except SampleError as error:
                unread.append((f"{self._path(row)}: {self._keys[row]}", str(error)))
        return PairBatch(_by_view(views, self._input_px), _params_by_view(params), tuple(unread))

    def _plan(self, epoch: int) -> np.ndarray:
        return _cached_plan(len(self), self._batch_size, self._seed, epoch)

    def _path(self, row: int) -> str:
        return self._paths[int(self._places[row, 0])]

    def _encoded(self, row: int) -> bytes:
        _, offset, size = self._places[row].tolist()
        with open(self._path(row), "rb", buffering=0) as file:
            encoded = os.pread(file.fileno(), size, offset)
        if len(encoded) != size:
            raise ShardError(f"{self._path(row)} changed while it was read: run again")
        return encoded


class _Steps(Dataset[PairBatch | Exception]):
    """A loader's view of the plan; errors are handed over as values, whole."""

    def __init__(self, pairs: Pairs, steps: range) -> None:
        self._pairs, self._steps = pairs, steps

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, place: int) -> PairBatch | Exception:
        try:
            return self._pairs.batch(self._steps[place])
        except (BeamclipError, OSError) as error:
            return error


@lru_cache(maxsize=2)
def _cached_plan(num_images: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    return plan_epoch(num_images, batch_size, seed, epoch)


def _images(shard: Shard) -> Iterator[tuple[str, int, int]]:
    """Yield key, byte offset and size of every image of a shard; a sample without one is told."""
    for sample in read_samples(shard, max_image_bytes=-1):  # places alone, no content
        try:
            image = sample.image()
        except SampleError as error:
            _log.warning("%s: left out sample %s: %s", shard, sample.key, error)
            continue
        yield sample.key, image.offset, image.size_bytes


def _by_view(views: list[Tensor], input_px: int) -> Tensor:
    """Put [2,3,S,S] of each image together as [2B,3,S,S], first views first."""
    if not views:
        return torch.empty(0, 3, input_px, input_px, dtype=torch.uint8)
    return torch.stack(views, 1).flatten(0, 1).contiguous()


def _params_by_view(params: Sequence[Sequence[ViewParams]]) -> np.ndarray:
    """Put the two rows of each image together as [2B,P], first views first."""
    width = len(ViewParams._fields)
    params_B2P = np.array(params, np.float32).reshape(len(params), 2, width)
    return params_B2P.swapaxes(0, 1).reshape(-1, width)
