"""Scores a student in training on rows that no step sees, after every epoch.

Shape letters: N held-out rows, A anchors, D teacher dimension, S side in pixels.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.batches import ViewBatch, eval_batches
from pipeline.cache import layout
from pipeline.cache.reader import Anchors, TargetCache
from pipeline.order import hold_out
from pipeline.schedule import EVAL
from pipeline.shards import Shard
from pipeline.students import AnyStudent
from pipeline.tokens import Reader, TokenisedTexts, tokenised

_log = logging.getLogger(__name__)
_SHARE = 20  # of the train rows, at most one in so many is held out
_VALIDATION = "val"
_NEIGHBOURS = 5
_TEXTS = 256  # captions read at once


class HeldOut:
    """The eval views of a slice: of split val, or of rows that training leaves out.

    batches: side S -> batches of the slice. anchors_AD: those trained with. zeroshot: those that
    name the classes. leave_out_N: which train rows training must not see, or None. own_space:
    whether students embed into a space of their own, where neither targets nor anchors lie; texts:
    captions of the split, for those.
    """

    def __init__(
        self,
        batches: Callable[[int], Iterable[ViewBatch]],
        anchors: Anchors,
        zeroshot: Anchors,
        device: torch.device,
        leave_out_N: np.ndarray | None = None,
        texts: TokenisedTexts | None = None,
        *,
        own_space: bool = False,
    ) -> None:
        self._batches, self._device, self.leave_out_N = batches, device, leave_out_N
        self._texts, self._own_space = texts, own_space
        self._anchors_AD = torch.from_numpy(anchors.embeddings_AD)
        self._zeroshot = zeroshot

    def scores(
        self, student: AnyStudent, state: Mapping[str, Tensor], size: int
    ) -> dict[str, float]:
        """Return the scores of a student under the weights of `state`, seeing views of S pixels.

        held_out_cosine: mean cosine to the target. held_out_agreement: share of rows whose nearest
        anchor is the teacher's. Of a student in a space of its own in place of those two, if there
        are captions: held_out_image_to_text (share of images whose nearest caption is one of their
        own) and held_out_text_to_image. With labels: held_out_zeroshot (nearest anchor names the
        class) and held_out_knn (vote of the 5 nearest other rows). Training goes on as if nothing
        had been asked.
        """
        seen = self._see(student, state, size)
        found = self._beside_texts(seen) if self._own_space else self._beside_teacher(seen)
        known_N = seen.labels_N >= 0
        if known_N.any():
            embedding_ND, labels_N = seen.embedding_ND[known_N], seen.labels_N[known_N]
            if self._zeroshot.labelled and not self._own_space:
                anchors_AD = torch.from_numpy(self._zeroshot.embeddings_AD)
                found["held_out_zeroshot"] = _share(_nearest(embedding_ND, anchors_AD), labels_N)
            if len(labels_N) > _NEIGHBOURS:
                found["held_out_knn"] = _share(_vote(embedding_ND, labels_N), labels_N)
        return found

    def _beside_teacher(self, seen: "_Seen") -> dict[str, float]:
        cosine_N = (seen.embedding_ND * seen.target_ND).sum(dim=1)
        found = {"held_out_cosine": float(cosine_N.mean())}
        if len(self._anchors_AD):
            found["held_out_agreement"] = _share(
                _nearest(seen.embedding_ND, self._anchors_AD),
                _nearest(seen.target_ND, self._anchors_AD),
            )
        return found

    def _beside_texts(self, seen: "_Seen") -> dict[str, float]:
        """Return how often the nearest of the other kind is one's own; {} without a caption."""
        if not len(seen.text_rows_K):
            return {}
        image_K = _nearest(seen.text_KD, seen.embedding_ND)  # the nearest image of each caption
        caption_N = _nearest(seen.embedding_ND, seen.text_KD)
        captioned_N = torch.isin(seen.rows_N, seen.text_rows_K)
        right_N = seen.text_rows_K[caption_N] == seen.rows_N
        return {
            "held_out_image_to_text": float(right_N[captioned_N].float().mean()),
            "held_out_text_to_image": _share(seen.rows_N[image_K], seen.text_rows_K),
        }

    def _see(self, student: AnyStudent, state: Mapping[str, Tensor], size: int) -> "_Seen":
        embeddings, targets, labels, rows = [], [], [], []
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
                    rows.append(batch.rows_B)
                rows_N = torch.cat(rows)
                text_KD, text_rows_K = self._read(student, state, views[:1], rows_N)
        finally:
            student.train(was_training)
        return _Seen(
            torch.cat(embeddings),
            torch.cat(targets),
            torch.cat(labels),
            rows_N,
            text_KD,
            text_rows_K,
        )

    def _read(
        self, student: AnyStudent, state: Mapping[str, Tensor], view_1: Tensor, rows_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the embeddings of the rows' captions, and the row of each."""
        if self._texts is None:
            return torch.empty(0), torch.empty(0, dtype=torch.int64)
        items_K = np.flatnonzero(np.isin(self._texts.rows_K, rows_N.numpy()))
        found = []
        for begin in range(0, len(items_K), _TEXTS):
            tokens = self._texts.batch(items_K[begin : begin + _TEXTS])
            here = (view_1, tokens.to(self._device))
            outputs = torch.func.functional_call(student, dict(state), here)
            found.append(F.normalize(outputs.text.output_BE, dim=1).float().cpu())
        rows_K = torch.from_numpy(self._texts.rows_K[items_K])
        return torch.cat(found) if found else torch.empty(0), rows_K


@dataclass(frozen=True)
class _Seen:
    """What a student says of the slice; text_KD, text_rows_K: of its captions, empty without."""

    embedding_ND: Tensor
    target_ND: Tensor
    labels_N: Tensor
    rows_N: Tensor
    text_KD: Tensor
    text_rows_K: Tensor


def held_out_slice(
    cache: TargetCache,
    shards: Sequence[Shard],
    count: int,
    *,
    anchors: Anchors,
    zeroshot: Anchors,
    device: torch.device,
    reader: Reader | None = None,
) -> HeldOut | None:
    """Choose the slice of a training from `cache` (the train split); None if count is 0.

    The choice is the same for every seed. From split val if the cache has one and its shards are
    given, else from train, of which it takes at most a twentieth, and none of fewer than 20 rows.
    reader: of a student that reads texts; the captions are those called by the split's name.
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

    texts = None
    if reader is not None and split in layout.caption_names(cache.path):
        texts = tokenised(source.captions(split), reader)
    own_space = reader is not None
    return HeldOut(batches, anchors, zeroshot, device, leave_out_N, texts, own_space=own_space)


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
