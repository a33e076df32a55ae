"""Refuses what a probe cannot score, in the same words for all of them.

Shape letters: N rows, D teacher dimension.
"""

import numpy as np

from pipeline.cache.reader import Anchors
from pipeline.errors import ProbeError


def check_finite(values: np.ndarray, what: str, *, because: str = "training has diverged") -> None:
    """Raise ProbeError for NaN and infinity among the values."""
    if not np.isfinite(values).all():
        raise ProbeError(f"the {what} hold NaN or Inf: {because}")


def which_labelled(labels_N: np.ndarray, split: str, probe: str) -> np.ndarray:
    """Return which rows have a label, bool [N]; raises ProbeError if none has."""
    known_N = np.asarray(labels_N >= 0)
    if not known_N.any():
        raise ProbeError(f"no {split} sample has a label (.cls): the {probe} probe needs them")
    return known_N


def check_classes(labels_N: np.ndarray, anchors: Anchors) -> None:
    """Raise ProbeError unless anchor i stands for label i, for every label of the rows."""
    num_classes = len(anchors.class_names)
    if not anchors.labelled:
        raise ProbeError(
            f"prompt set {anchors.name} does not hold one anchor for each label, in order (it is a "
            "sample of the classes, or keeps templates apart): give another"
        )
    if labels_N.max() >= num_classes:
        raise ProbeError(
            f"a test sample has label {labels_N.max()}, prompt set {anchors.name} has "
            f"{num_classes} classes (0 to {num_classes - 1}): give the prompts of this dataset"
        )


def check_space(embedding_ND: np.ndarray, other_ND: np.ndarray, what: str) -> None:
    """Raise ProbeError if what the test embeddings are compared with has another dimension."""
    if embedding_ND.shape[1] != other_ND.shape[1]:
        raise ProbeError(
            f"the test embeddings have {embedding_ND.shape[1]} dimensions, {what} has "
            f"{other_ND.shape[1]}: give the cache of the teacher that the student learned from"
        )
