"""Runs a frozen encoder over a split once, for all probes."""

from collections.abc import Iterable

import numpy as np
import torch

from pipeline.batches import ViewBatch
from pipeline.cache.reader import TargetCache
from pipeline.contracts import Features
from pipeline.students import Student


def student_features(
    student: Student, batches: Iterable[ViewBatch], device: torch.device
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


def teacher_features(cache: TargetCache) -> Features:
    """Return the teacher's own features from the eval view of a cache: no image, no teacher."""
    valid = np.flatnonzero(cache.column("valid"))
    embedding_ND = cache.targets(valid, 0)
    return Features(embedding_ND, embedding_ND, np.array(cache.column("label")[valid]), valid)
