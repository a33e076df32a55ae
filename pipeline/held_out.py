"""Scores a student in training on rows that no step sees, after every epoch.

Shape letters: N held-out rows, A anchors, D teacher dimension, S side in pixels.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.batches import ViewBatch, eval_batches
from pipeline.cache.reader import Anchors, TargetCache
from pipeline.order import hold_out
from pipeline.schedule import EVAL
from pipeline.shards import Shard
from pipeline.students import Student

_log = logging.getLogger(__name__)
_SHARE = 20  # of the train rows, at most one in so many is held out
_VALIDATION = "val"
_NEIGHBOURS = 5


class HeldOut:
    """The eval views of a slice: of split val, or of rows that training leaves out.

    batches: side S -> batches of the slice. anchors_AD: those trained with. zeroshot: those that
    name the classes. leave_out_N: which train rows training must not see, or None.
    """

    def __init__(
        self,
        batches: Callable[[int], Iterable[ViewBatch]],
        anchors: Anchors,
        zeroshot: Anchors,
        device: torch.device,
        leave_out_N: np.ndarray | None = None,
    ) -> None:
        self._batches, self._device, self.leave_out_N = batches, device, leave_out_N
        self._anchors_AD = torch.from_numpy(anchors.embeddings_AD)
        self._zeroshot = zeroshot

    def scores(self, student: Student, state: Mapping[str, Tensor], size: int) -> dict[str, float]:
        """Return the scores of a student under the weights of `state`, seeing views of S pixels.

        held_out_cosine: mean cosine to the target. held_out_agreement: share of rows whose nearest
        anchor is the teacher's. With labels: held_out_zeroshot (nearest anchor names the class) and
        held_out_knn (vote of the 5 nearest other rows). Training goes on as if nothing had been
        asked.
        """
        embedding_ND, target_ND, labels_N = self._embed(student, state, size)
        found = {
            "held_out_cosine": float((embedding_ND * target_ND).sum(dim=1).mean()),
        }
        if len(self._anchors_AD):
            found["held_out_agreement"] = _share(
                _nearest(embedding_ND, self._anchors_AD), _nearest(target_ND, self._anchors_AD)
            )
        known_N = labels_N >= 0
        if known_N.any():
            embedding_ND, labels_N = embedding_ND[known_N], labels_N[known_N]
            if self._zeroshot.labelled:
                anchors_AD = torch.from_numpy(self._zeroshot.embeddings_AD)
                found["held_out_zeroshot"] = _share(_nearest(embedding_ND, anchors_AD), labels_N)
            if len(labels_N) > _NEIGHBOURS:
                found["held_out_knn"] = _share(_vote(embedding_ND, labels_N), labels_N)
        return found

    def _embed(
        self, student: Student, state: Mapping[str, Tensor], size: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        embeddings, targets, labels = [], [], []
        was_training = student.training
        student.eval()
        try:
            with torch.inference_mode():
                for batch in self._batches(size):
                    views = batch.views(self._device, size)
                    outputs = torch.func.functional_call(student, dict(state), (views,))
                    embeddings.append(outputs.embedding_BD.float().cpu())
                    targets.append(batch.target_BD)
                    labels.append(batch.labels_B)
        finally:
            student.train(was_training)
        return torch.cat(embeddings), torch.cat(targets), torch.cat(labels)


def held_out_slice(
    cache: TargetCache,
    shards: Sequence[Shard],
    count: int,
    *,
    anchors: Anchors,
    zeroshot: Anchors,
    device: torch.device,
) -> HeldOut | None:
    """Choose the slice of a training from `cache` (the train split); None if count is 0.

    The choice is the same for every seed. From split val if the cache has one and its shards are
    given, else from train, of which it takes at most a twentieth, and none of fewer than 20 rows.
    """
    generation = cache.manifest["generation"]
    split, leave_out_N = _VALIDATION, None
    if not _has_validation(cache, shards):
        split, count = cache.split, min(count, len(cache) // _SHARE)
    if count == 0:
        return None
    source = TargetCache.open(cache.path, split, EVAL, generation=generation)
    chosen_N = hold_out(len(source), count)
    if split == cache.split:
        leave_out_N = chosen_N
    rows_N = np.flatnonzero(chosen_N & np.asarray(source.column("valid")))
    if len(rows_N) == 0:
        return None

    def batches(size: int) -> Iterable[ViewBatch]:
        return eval_batches(source, shards, input_px=size, rows_N=rows_N)

    return HeldOut(batches, anchors, zeroshot, device, leave_out_N)


def _has_validation(cache: TargetCache, shards: Sequence[Shard]) -> bool:
    if _VALIDATION not in cache.manifest["splits"]:
        return False
    if not any(shard.split == _VALIDATION for shard in shards):
        _log.warning(
            "the cache has a val split, but none of its shards is given: held out of train"
        )
        return False
    return True


def _nearest(embedding_ND: Tensor, anchors_AD: Tensor) -> Tensor:
    return (embedding_ND @ anchors_AD.T).argmax(dim=1)


def _share(found_N: Tensor, wanted_N: Tensor) -> float:
    return float((found_N == wanted_N).float().mean())


def _vote(embedding_ND: Tensor, labels_N: Tensor) -> Tensor:
    """Return the class of most of each row's nearest other rows; the nearest decides ties."""
    cosine_NN = embedding_ND @ embedding_ND.T
    cosine_NN.fill_diagonal_(-2)
    nearest_NK = labels_N[cosine_NN.topk(_NEIGHBOURS, dim=1).indices]
    votes_NK = (nearest_NK[:, :, None] == nearest_NK[:, None, :]).sum(dim=2)
    return nearest_NK.gather(1, votes_NK.argmax(dim=1, keepdim=True))[:, 0]
