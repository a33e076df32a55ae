"""Measures which anchors images are drawn to: what an ambiguous label looks like from the cache.

Shape letters: N rows, B a block of rows, A anchors, D teacher dimension.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_UNDECIDED = 2.0  # odds of the nearest anchor against the next, below which the teacher cannot tell


@dataclass(frozen=True)
class Attraction:
    """What images say of a set of anchors; arrays have one entry per anchor.

    attracted_A: images whose nearest anchor it is. certainty_A: the mean share of softmax that it
    has of them, 0 where there are none. undecided: by pair of anchors (i < j), the images of either
    for which the other comes next, at odds below 2 to 1. nearest_N: each image's anchor.
    labelled_A, right_A: images that carry its label, and those of them that it attracts.
    mistaken: by (label, anchor), images of that label drawn to that other anchor.
    """

    attracted_A: np.ndarray
    certainty_A: np.ndarray
    undecided: Counter[tuple[int, int]]
    nearest_N: np.ndarray
    labelled_A: np.ndarray
    right_A: np.ndarray
    mistaken: Counter[tuple[int, int]]

    def expected_A(self) -> np.ndarray:
        """Return how many images each anchor should attract: its labels', else an even share."""
        if self.labelled_A.any():
            return self.labelled_A.astype(float)
        return np.full(len(self.attracted_A), len(self.nearest_N) / len(self.attracted_A))

    def ambiguity_A(self) -> np.ndarray:
        """Return 0 (plain) to 1 (hopeless) for each anchor.

        With labels: 1 - F1 of the teacher's zero-shot for the class. Without: 1 - the share of its
        even part of the images that it attracts (at most 1) x the certainty about them. A class
        that is rare among the images looks ambiguous without labels.
        """
        expected_A = np.maximum(self.expected_A(), 1e-9)
        if self.labelled_A.any():
            plain_A = 2 * self.right_A / np.maximum(self.attracted_A + self.labelled_A, 1)
        else:
            plain_A = np.minimum(1, self.attracted_A / expected_A) * self.certainty_A
        return np.asarray(1 - plain_A)

    def near_duplicates(self) -> list[tuple[int, int, float]]:
        """Return (i, j, share): pairs undecided for over half of their images, worst first."""
        found = []
        for (one, other), images in self.undecided.items():
            share = images / float(self.attracted_A[one] + self.attracted_A[other])
            if share > 0.5:
                found.append((one, other, share))
        return sorted(found, key=lambda pair: (-pair[2], pair[0], pair[1]))


def attraction(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], embeddings_AD: np.ndarray, logit_scale: float
) -> Attraction:
    """Measure a set of anchors by blocks of (normalised targets float32 [B,D], labels int64 [B]).

    Labels of -1, and those that have no anchor, count as unknown.
    """
    size = len(embeddings_AD)
    attracted_A, labelled_A, right_A = (np.zeros(size, np.int64) for _ in range(3))
    certain_A = np.zeros(size)
    undecided: Counter[tuple[int, int]] = Counter()
    mistaken: Counter[tuple[int, int]] = Counter()
    nearest = []
    for target_BD, labels_B in blocks:
        first_B, second_B, share_B, odds_B = _two_nearest(target_BD, embeddings_AD, logit_scale)
        nearest.append(first_B)
        attracted_A += np.bincount(first_B, minlength=size)
        certain_A += np.bincount(first_B, weights=share_B, minlength=size)
        torn_B = odds_B < _UNDECIDED
        pairs_B2 = np.sort(np.stack([first_B, second_B], axis=1)[torn_B], axis=1)
        undecided.update(map(tuple, pairs_B2.tolist()))
        known_B = (labels_B >= 0) & (labels_B < size)
        labels_B, first_B = labels_B[known_B], first_B[known_B]
        labelled_A += np.bincount(labels_B, minlength=size)
        right_A += np.bincount(labels_B[labels_B == first_B], minlength=size)
        wrong_B = labels_B != first_B
        mistaken.update(zip(labels_B[wrong_B].tolist(), first_B[wrong_B].tolist(), strict=True))
    return Attraction(
        attracted_A=attracted_A,
        certainty_A=certain_A / np.maximum(attracted_A, 1),
        undecided=undecided,
        nearest_N=np.concatenate(nearest) if nearest else np.zeros(0, np.int64),
        labelled_A=labelled_A,
        right_A=right_A,
        mistaken=mistaken,
    )


def _two_nearest(
    target_BD: np.ndarray, embeddings_AD: np.ndarray, logit_scale: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return per row: nearest anchor, the next one, the nearest's share of softmax, their odds."""
    logits_BA = logit_scale * (target_BD @ embeddings_AD.T)
    rows_B = np.arange(len(logits_BA))
    first_B = logits_BA.argmax(axis=1)
    top_B = logits_BA[rows_B, first_B].copy()
    share_B = 1 / np.exp(logits_BA - top_B[:, None]).sum(axis=1)
    logits_BA[rows_B, first_B] = -np.inf
    second_B = logits_BA.argmax(axis=1)
    odds_B = np.exp(np.minimum(top_B - logits_BA[rows_B, second_B], 50))
    return first_B, second_B, share_B, odds_B
