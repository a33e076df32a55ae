"""Runs a frozen encoder over a split once, for all probes.

Shape letters: B batch, S side of a view in pixels, F feature dimension, D embedding dimension.
"""

import logging
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.batches import ViewBatch
from pipeline.cache.reader import TargetCache
from pipeline.checkpoints import tensors_sha256
from pipeline.contracts import Features
from pipeline.errors import ProbeError
from pipeline.labelled import EvalView, LabelledSplit, rendered_rows
from pipeline.students import AnyStudent

_log = logging.getLogger(__name__)
# uint8 views [B,3,S,S] on the CPU -> float32 features [B,F], float32 normalised embedding [B,D].
Encode = Callable[[Tensor], tuple[Tensor, Tensor]]


def student_features(
    student: AnyStudent, batches: Iterable[ViewBatch], device: torch.device
) -> Features:
    """Return a student's features over the batches, in their order, in evaluation mode."""
    student.eval()
    features, embeddings, labels, rows = [], [], [], []
    with torch.inference_mode():
        for batch in batches:
            outputs = student(batch.views(device))
            features.append(outputs.features_BF.cpu().numpy())
            embeddings.append(outputs.embedding_BD.cpu().numpy())
            labels.append(batch.labels_B.numpy())
            rows.append(batch.rows_B.numpy())
    return Features(
        np.concatenate(features),
        np.concatenate(embeddings),
        np.concatenate(labels),
        np.concatenate(rows),
    )


def encoded_features(
    encode: Encode, split: LabelledSplit, view: EvalView, *, workers: int = 0
) -> Features:
    """Return any encoder's features of the images of a split, in row order.

    Images that cannot be used have no row, and are told of; raises ProbeError if none is left.
    """
    features, embeddings, rows, faults = [], [], [], list(split.faults.values())
    with torch.inference_mode():
        for batch in rendered_rows(split, view, workers=workers):
            faults += batch.faults.values()
            if len(batch.rows_B):
                features_BF, embedding_BD = encode(batch.views_B3SS)
                features.append(features_BF.cpu().numpy())
                embeddings.append(embedding_BD.cpu().numpy())
                rows.append(batch.rows_B)
    if not rows:
        raise ProbeError(f"no {split.split} image can be used: {faults[0]}")
    if faults:
        _log.warning(
            "%d of %d %s samples cannot be used, and count for nobody; the first: %s",
            len(faults),
            len(split),
            split.split,
            faults[0],
        )
    rows_N = np.concatenate(rows)
    labels_N = split.columns["label"][rows_N]
    return Features(np.concatenate(features), np.concatenate(embeddings), labels_N, rows_N)


def teacher_features(cache: TargetCache) -> Features:
    """Return the teacher's own features from the eval view of a cache: no image, no teacher."""
    valid = np.flatnonzero(cache.column("valid"))
    embedding_ND = cache.targets(valid, 0)
    return Features(embedding_ND, embedding_ND, np.array(cache.column("label")[valid]), valid)


def student_identity(student: AnyStudent) -> dict[str, Any]:
    """Return, as plain values, what tells a student's numbers from another's: weights and network.

    The network's own description is hashed too: a stem without pooling has the same weights.
    """
    config = getattr(student.backbone, "default_cfg", None) or {}
    return {
        "weights": tensors_sha256(student.state_dict()),
        "architecture": config.get("architecture"),
        "network": sha256(repr(student).encode()).hexdigest(),
        "mean": student.mean.flatten().tolist(),
        "std": student.std.flatten().tolist(),
    }
