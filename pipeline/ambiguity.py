"""Measures which classes images are drawn to: what an ambiguous label looks like from the cache.

Shape letters: N rows, B a block of rows, A anchors, C classes, b a block of classes, D teacher
dimension.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_UNDECIDED = 2.0  # odds of the nearest class against the next, below which the teacher cannot tell
_SAME = 1 - 1e-4  # a cosine from which two anchors are one
_BLOCK = 1024  # classes


@dataclass(frozen=True)
class ClassAnchors:
    """The anchors of each class: one, or several that are kept apart.

    embeddings_AD: normalised, float32, those of a class together, classes in the order of `names`.
    starts_C: the place of each class's first.
    """

    names: tuple[str, ...]
    embeddings_AD: np.ndarray
    starts_C: np.ndarray

    @classmethod
    def of(cls, embeddings_AD: np.ndarray, class_names: Sequence[str]) -> "ClassAnchors":
        """Gather anchors, named by their classes; a class stands where its first anchor does."""
        names = tuple(dict.fromkeys(class_names))
        places = {name: place for place, name in enumerate(names)}
        class_A = np.array([places[name] for name in class_names], np.int64)
        order_A = np.argsort(class_A, kind="stable")
        starts_C = np.searchsorted(class_A[order_A], np.arange(len(names)))
        return cls(names, embeddings_AD[order_A], starts_C)

    def cosines(self, target_BD: np.ndarray) -> np.ndarray:
        """Return the cosine of each row to the closest anchor of each class, [B,C]."""
        cosine_BA = target_BD @ self.embeddings_AD.T
        if len(self.starts_C) == len(self.embeddings_AD):
            return np.asarray(cosine_BA)
        return np.asarray(np.maximum.reduceat(cosine_BA, self.starts_C, axis=1))

    def cosine(self, one: int, other: int) -> float:
        """Return the largest cosine of an anchor of one class to one of another."""
        ends_C = np.append(self.starts_C[1:], len(self.embeddings_AD))
        rows_AD = self.embeddings_AD[self.starts_C[other] : ends_C[other]]
        return float(self.cosines(rows_AD)[:, one].max())

    def between(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first class, [b,C]): the largest cosine of anchors of two classes, in blocks."""
        ends_C = np.append(self.starts_C[1:], len(self.embeddings_AD))
        for begin in range(0, len(self.names), _BLOCK):
            starts_b = self.starts_C[begin : begin + _BLOCK]
            last = ends_C[begin : begin + _BLOCK][-1]
            cosine_AC = self.cosines(self.embeddings_AD[starts_b[0] : last])
            yield begin, np.maximum.reduceat(cosine_AC, starts_b - starts_b[0], axis=0)

    def same(self) -> list[tuple[int, int]]:
        """Return (i, j): class j has an anchor of i < j, or one at a cosine of 0.9999 and more.

        Of several that are the same, each is paired with the first.
        """
        pairs = []
        for begin, cosine_bC in self.between():
            first_b = (cosine_bC >= _SAME).argmax(axis=1)
            later_b = np.arange(begin, begin + len(first_b))
            pairs += [(int(i), int(j)) for i, j in zip(first_b, later_b, strict=True) if i < j]
        return pairs


@dataclass(frozen=True)
class Attraction:
    """What images say of a set of anchors; arrays have one entry per class.

    attracted_C: images whose nearest anchor is one of the class's. certainty_C: the mean share of
    softmax that the class has of them, 0 where there are none. undecided: by pair of classes
    (i < j), the images of either for which the other comes next, at odds below 2 to 1. nearest_N:
    each image's class. Of the images with a label: labelled_C carry the class's, known_C are
    attracted by the class, right_C are both. mistaken: by (label, class), images of that label
    drawn to that other class.
    """

    attracted_C: np.ndarray
    certainty_C: np.ndarray
    undecided: Counter[tuple[int, int]]
    nearest_N: np.ndarray
    labelled_C: np.ndarray
    known_C: np.ndarray
    right_C: np.ndarray
    mistaken: Counter[tuple[int, int]]

    def expected_C(self) -> np.ndarray:
        """Return how many images each class should attract: its part of the labels, or an even one.

        Images without a label are taken to be as those that have one.
        """
        if self.labelled_C.any():
            return np.asarray(self.labelled_C * (len(self.nearest_N) / self.labelled_C.sum()))
        return np.full(len(self.attracted_C), len(self.nearest_N) / len(self.attracted_C))

    def ambiguity_C(self) -> np.ndarray:
        """Return 0 (plain) to 1 (hopeless) for each class, NaN where nothing can be said.

        With labels: 1 - F1 of the teacher's zero-shot over the labelled images; NaN for a class
        that none of them belongs to. Without: 1 - the share of its even part of the images that it
        attracts (at most 1) x the certainty about them. A class that is rare among the images looks
        ambiguous without labels.
        """
        if self.labelled_C.any():
            f1_C = 2 * self.right_C / np.maximum(self.known_C + self.labelled_C, 1)
            return np.where(self.labelled_C > 0, 1 - f1_C, np.nan)
        expected_C = np.maximum(self.expected_C(), 1e-9)
        return np.asarray(1 - np.minimum(1, self.attracted_C / expected_C) * self.certainty_C)

    def torn(self) -> dict[tuple[int, int], float]:
        """Return, by pair of classes that over half of their images do not decide, that share."""
        found = {}
        for (one, other), images in self.undecided.items():
            share = images / float(self.attracted_C[one] + self.attracted_C[other])
            if share > 0.5:
                found[one, other] = share
        return found


def attraction(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], classes: ClassAnchors, logit_scale: float
) -> Attraction:
    """Measure a set of anchors by blocks of (normalised targets float32 [B,D], labels int64 [B]).

    Labels of -1, and those that have no class, count as unknown.
    """
    size = len(classes.names)
    attracted_C, labelled_C, known_C, right_C = (np.zeros(size, np.int64) for _ in range(4))
    certain_C = np.zeros(size)
    undecided: Counter[tuple[int, int]] = Counter()
    mistaken: Counter[tuple[int, int]] = Counter()
    nearest = []
    for target_BD, labels_B in blocks:
        first_B, second_B, share_B, odds_B = _two_nearest(classes.cosines(target_BD), logit_scale)
        nearest.append(first_B)
        attracted_C += np.bincount(first_B, minlength=size)
        certain_C += np.bincount(first_B, weights=share_B, minlength=size)
        torn_B = odds_B < _UNDECIDED
        pairs_B2 = np.sort(np.stack([first_B, second_B], axis=1)[torn_B], axis=1)
        undecided.update(map(tuple, pairs_B2.tolist()))
        has_B = (labels_B >= 0) & (labels_B < size)
        labels_B, first_B = labels_B[has_B], first_B[has_B]
        labelled_C += np.bincount(labels_B, minlength=size)
        known_C += np.bincount(first_B, minlength=size)
        right_C += np.bincount(labels_B[labels_B == first_B], minlength=size)
        wrong_B = labels_B != first_B
        mistaken.update(zip(labels_B[wrong_B].tolist(), first_B[wrong_B].tolist(), strict=True))
    return Attraction(
        attracted_C=attracted_C,
        certainty_C=certain_C / np.maximum(attracted_C, 1),
        undecided=undecided,
        nearest_N=np.concatenate(nearest) if nearest else np.zeros(0, np.int64),
        labelled_C=labelled_C,
        known_C=known_C,
        right_C=right_C,
        mistaken=mistaken,
    )


def _two_nearest(
    cosine_BC: np.ndarray, logit_scale: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return per row: nearest class, the next one, the nearest's share of softmax, their odds."""
    logits_BC = logit_scale * cosine_BC
    rows_B = np.arange(len(logits_BC))
    first_B = logits_BC.argmax(axis=1)
    top_B = logits_BC[rows_B, first_B].copy()
    share_B = 1 / np.exp(logits_BC - top_B[:, None]).sum(axis=1)
    logits_BC[rows_B, first_B] = -np.inf
    second_B = logits_BC.argmax(axis=1)
    odds_B = np.exp(np.minimum(top_B - logits_BC[rows_B, second_B], 50))
    return first_B, second_B, share_B, odds_B
