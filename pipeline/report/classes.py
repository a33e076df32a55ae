"""Tells how the classes fare: recalls under two prompt sets, confusions, the worst images.

Shape letters: N test rows, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.cache.reader import Anchors
from pipeline.report.maps import heat_map, pair_chart
from pipeline.report.seen import Seen, said
from pipeline.report.svg import Chart

MOST_CLASSES = 30  # that are drawn one by one
_PAIRS = 20


@dataclass(frozen=True)
class Confused:
    """Images of one class that a student takes for another."""

    true: str
    said: str
    count: int
    share: float  # of the true class's images


@dataclass(frozen=True)
class Wrong:
    """One test image that a student gets wrong, or nearly.

    margin: cosine to the true class less that to the best other, so below 0 where it is wrong.
    """

    row: int
    true: str
    said: str
    margin: float


def confusion(labels_N: np.ndarray, said_N: np.ndarray, classes: int) -> np.ndarray:
    """Return counts, int64 [C,C]: rows are true classes. Rows without a label do not count."""
    known = labels_N >= 0
    counts_CC = np.zeros((classes, classes), np.int64)
    np.add.at(counts_CC, (labels_N[known], said_N[known]), 1)
    return counts_CC


def recorded_confusion(details: Mapping[str, object] | None) -> tuple[list[str], np.ndarray] | None:
    """Return class names and counts from the zero-shot probe's details, or None without them."""
    found = ((details or {}).get("student") or {}).get("zeroshot")  # type: ignore[attr-defined]
    if not found or "confusion" not in found or "class_names" not in found:
        return None
    names = [str(name) for name in found["class_names"]]
    counts_CC = np.zeros((len(names), len(names)), np.int64)
    for true, said_, count in found["confusion"]:
        counts_CC[true, said_] = count
    for item in found.get("per_class", ()):  # the diagonal, where only mistakes are listed
        label = int(item["label"])
        hits = round(float(item["recall"] or 0) * int(item["images"]))
        counts_CC[label, label] = max(counts_CC[label, label], hits)
    return names, counts_CC


def confusion_chart(names: Sequence[str], counts_CC: np.ndarray) -> Chart | None:
    """Draw the matrix, or None if there are too many classes to see."""
    if len(names) > MOST_CLASSES:
        return None
    return heat_map("Confusion matrix", names, counts_CC)


def worst_pairs(names: Sequence[str], counts_CC: np.ndarray) -> list[Confused]:
    """Return the pairs that are confused most, by share of the true class."""
    totals_C = counts_CC.sum(axis=1)
    found = [
        Confused(names[i], names[j], int(counts_CC[i, j]), float(counts_CC[i, j] / totals_C[i]))
        for i, j in zip(*np.nonzero(counts_CC), strict=True)
        if i != j
    ]
    return sorted(found, key=lambda pair: (-pair.share, -pair.count))[:_PAIRS]


def recalls(labels_N: np.ndarray, said_N: np.ndarray, classes: int) -> np.ndarray:
    """Return the share of each class that is named right, float64 [C], NaN without images."""
    counts_CC = confusion(labels_N, said_N, classes)
    totals_C = counts_CC.sum(axis=1)
    shares_C = np.full(classes, np.nan)
    np.divide(np.diag(counts_CC), totals_C, out=shares_C, where=totals_C > 0)
    return shares_C


def context_set(seen: Seen) -> Anchors | None:
    """Return the set whose context is to help: the one trained with, else one that says cpa."""
    others = seen.ground.labelled[1:]
    named = [item for item in others if item.name == seen.run.anchors]
    named += [item for item in others if "cpa" in item.name.rpartition("-")[2]]
    return named[0] if named else None


def context_chart(seen: Seen) -> Chart | None:
    """Draw each class's recall by the zero-shot set and by the set with context, if there is one.

    The classes that move most stand first; of many classes, those alone are drawn.
    """
    other = context_set(seen)
    if other is None or not (seen.ground.labels_N >= 0).any():
        return None
    plain = seen.ground.zeroshot
    labels_N, classes = seen.ground.labels_N, len(plain.class_names)
    one_C = recalls(labels_N, seen.said_N, classes)
    other_C = recalls(labels_N, said(seen.features, other), classes)
    order = sorted(
        np.flatnonzero(~np.isnan(one_C)).tolist(), key=lambda c: -abs(other_C[c] - one_C[c])
    )[:MOST_CLASSES]
    order.sort(key=lambda c: other_C[c] - one_C[c], reverse=True)
    return pair_chart(
        f"Recall by class: {plain.name} (ring), {other.name} (dot)",
        [(plain.class_names[c], float(one_C[c]), float(other_C[c])) for c in order],
        before=plain.name,
        after=other.name,
    )


def worst_images(seen: Seen, most: int = 10) -> list[Wrong]:
    """Return the images with the least margin, the most confidently wrong first."""
    labels_N = seen.ground.labels_N
    known_N = np.flatnonzero(labels_N >= 0)
    cosine_NC = seen.cosine_NC[known_N].copy()
    places = np.arange(len(known_N))
    true_N = labels_N[known_N]
    own_N = cosine_NC[places, true_N].copy()
    cosine_NC[places, true_N] = -np.inf
    rival_N, margin_N = cosine_NC.argmax(axis=1), own_N - cosine_NC.max(axis=1)
    names = seen.ground.zeroshot.class_names
    return [
        Wrong(
            row=int(seen.features.rows_N[known_N[i]]),
            true=names[true_N[i]],
            said=names[rival_N[i]],
            margin=float(margin_N[i]),
        )
        for i in np.argsort(margin_N, kind="stable")[:most]
    ]
