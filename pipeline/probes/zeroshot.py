"""Zero-shot probe: the nearest text anchor names the class.

Shape letters: N rows, B a block of them, A anchors (one per class), D teacher dimension.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.options import options
from pipeline.probes.checks import check_classes, check_finite, check_space, which_labelled
from pipeline.probes.contract import Result, Subject
from pipeline.probes.nearness import products, rank_of


@options
class ZeroshotOptions:
    """Nothing to set: the prompt set is the recipe's `prompts.zeroshot`."""


def run(subject: Subject, spec: ZeroshotOptions) -> Result:
    """Classify the test rows by cosine to the anchors; of equal ones the lower class wins.

    Scores: top1, top5 (with more than 5 classes) and mean_per_class, shares of the labelled rows.
    Details: class_names, per_class [{label, name, images, recall, most_confused_with (a label)}],
    the last two null where there is nothing to say, and confusion [[true, predicted, images]] of
    all pairs that occur. Raises ProbeError without labels, for labels that the prompt set does not
    have, or for anchors of another dimension.
    """
    test, anchors = subject.test, subject.need("anchors")
    known_N = which_labelled(test.labels_N, "test", "zero-shot")
    labels_N, embedding_ND = test.labels_N[known_N], test.embedding_ND[known_N].astype(np.float32)
    check_classes(labels_N, anchors)
    check_space(embedding_ND, anchors.embeddings_AD, f"prompt set {anchors.name}")
    check_finite(embedding_ND, "test embeddings")
    predicted_N, rank_N = _classify(embedding_ND, anchors.embeddings_AD, labels_N)
    right_N = rank_N == 0
    scores = {
        "top1": float(right_N.mean()),
        "mean_per_class": float(np.mean([right_N[labels_N == c].mean() for c in set(labels_N)])),
    }
    if len(anchors.class_names) > 5:
        scores["top5"] = float((rank_N < 5).mean())
    confusion = _confusion(labels_N, predicted_N)
    details = {
        "class_names": list(anchors.class_names),
        "per_class": _per_class(anchors.class_names, confusion),
        "confusion": confusion,
    }
    return Result(scores, details)


def _classify(
    embedding_ND: np.ndarray, anchors_AD: np.ndarray, labels_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's nearest anchor, and how many anchors are nearer than its label's own."""
    predicted_N, rank_N = np.empty_like(labels_N), np.empty_like(labels_N)
    for block, cosine_BA in products(embedding_ND, anchors_AD):
        predicted_N[block] = cosine_BA.argmax(axis=1)
        rank_N[block] = rank_of(cosine_BA, labels_N[block])
    return predicted_N, rank_N


def _confusion(labels_N: np.ndarray, predicted_N: np.ndarray) -> list[list[int]]:
    pairs_P2, images_P = np.unique(
        np.stack([labels_N, predicted_N], axis=1), axis=0, return_counts=True
    )
    triples: list[list[int]] = np.column_stack([pairs_P2, images_P]).tolist()
    return triples


def _per_class(names: Sequence[str], confusion: list[list[int]]) -> list[dict[str, Any]]:
    found: list[dict[int, int]] = [{} for _ in names]
    for label, predicted, images in confusion:
        found[label][predicted] = images
    return [
        {"label": label, "name": name, **_fate(label, found[label])}
        for label, name in enumerate(names)
    ]


def _fate(label: int, found: dict[int, int]) -> dict[str, Any]:
    """Return what became of the images of one class, of which `found` tells by predicted class."""
    images = sum(found.values())
    wrong = {other: count for other, count in found.items() if other != label}
    return {
        "images": images,
        "recall": found.get(label, 0) / images if images else None,
        # Ascending in a confusion: of equals the lowest.
        "most_confused_with": max(wrong, key=lambda other: wrong[other]) if wrong else None,
    }
