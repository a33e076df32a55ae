"""Nearest-neighbour probe: the labels of the most similar train rows vote, and nothing is learned.

Shape letters: N rows, B a block of test rows, F feature dimension, C classes, k neighbours.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np

from pipeline.errors import ProbeError
from pipeline.options import options
from pipeline.probes.checks import check_finite, which_labelled
from pipeline.probes.contract import Result, Subject
from pipeline.probes.nearness import normalised, products, top


@options
class KnnOptions:
    """DINO's protocol (Caron et al. 2021, arXiv 2104.14294, after Wu et al. 2018): 20 neighbours,
    each with a vote of exp(cosine / temperature). A plain vote counts heads.

    k: of the headline. ks: further numbers of neighbours to score.
    """

    k: int = 20
    ks: tuple[int, ...] = (1, 10, 20, 200)
    vote: Literal["weighted", "plain"] = "weighted"
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k is at least 1, not {self.k}")
        if min(self.ks, default=1) < 1:
            raise ValueError(f"ks are at least 1, not {min(self.ks)}")
        if self.temperature <= 0:
            raise ValueError(f"temperature is above 0, not {self.temperature}")


def run(subject: Subject, spec: KnnOptions) -> Result:
    """Classify the test rows by their nearest train rows, by cosine: backbone features, embedding.

    Scores: accuracy, at k neighbours, or at all of the labelled train rows if they are fewer;
    k, how many that were; accuracy_k1 ... of those of `ks` that the train rows allow; all shares
    of the labelled test rows, and the same with embedding_ before them. Of equally near train rows
    the earlier come first, of classes with equal votes the lower number wins; a class that no
    train row has counts as wrong. Raises ProbeError without labels, or for features that are not
    finite or of two dimensions.
    """
    train, test = subject.need("train"), subject.test
    scores = _score(train.features_NF, train.labels_N, test.features_NF, test.labels_N, spec)
    other = scores
    if train.features_NF is not train.embedding_ND:  # a teacher is known by its embedding alone
        other = _score(train.embedding_ND, train.labels_N, test.embedding_ND, test.labels_N, spec)
    beside = {f"embedding_{name}": value for name, value in other.items() if name != "k"}
    return Result({**scores, **beside})


def _score(
    train_NF: np.ndarray,
    train_labels_N: np.ndarray,
    test_NF: np.ndarray,
    test_labels_N: np.ndarray,
    spec: KnnOptions,
) -> dict[str, float]:
    train_x, train_y = _labelled(train_NF, train_labels_N, "train")
    test_x, test_y = _labelled(test_NF, test_labels_N, "test")
    if train_x.shape[1] != test_x.shape[1]:
        raise ProbeError(
            f"the train features have {train_x.shape[1]} dimensions, the test features "
            f"{test_x.shape[1]}: give those of one encoder"
        )
    headline = min(spec.k, len(train_y))
    ks = sorted({headline, *(k for k in spec.ks if k <= len(train_y))})
    right = dict.fromkeys(ks, 0)
    for block, cosine_Bk, label_Bk in _neighbours(train_x, train_y, test_x, ks[-1]):
        for k in ks:
            predicted_B = _vote(cosine_Bk[:, :k], label_Bk[:, :k], spec)
            right[k] += int((predicted_B == test_y[block]).sum())
    found = {f"accuracy_k{k}": right[k] / len(test_y) for k in ks if k in spec.ks}
    return {"accuracy": right[headline] / len(test_y), "k": float(headline), **found}


def _neighbours(
    train_NF: np.ndarray, labels_N: np.ndarray, test_NF: np.ndarray, k: int
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield (which test rows, cosines [B,k], labels [B,k]) of the nearest train rows."""
    for block, cosine_BN in products(test_NF, train_NF):
        place_Bk = top(cosine_BN, k)
        yield block, np.take_along_axis(cosine_BN, place_Bk, axis=1), labels_N[place_Bk]


def _vote(cosine_Bk: np.ndarray, label_Bk: np.ndarray, spec: KnnOptions) -> np.ndarray:
    """Return the label that has most votes, [B]."""
    classes_C, place_Bk = np.unique(label_Bk, return_inverse=True)
    weight_Bk = np.ones(cosine_Bk.shape)
    if spec.vote == "weighted":  # from the nearest, as only the votes' ratios count
        weight_Bk = np.exp((cosine_Bk - cosine_Bk[:, :1]).astype(np.float64) / spec.temperature)
    count, size = len(label_Bk), len(classes_C)
    flat_Bk = place_Bk.reshape(label_Bk.shape) + size * np.arange(count)[:, None]
    votes_BC = np.bincount(flat_Bk.ravel(), weight_Bk.ravel(), minlength=count * size)
    return np.asarray(classes_C[votes_BC.reshape(count, size).argmax(axis=1)])


def _labelled(
    features_NF: np.ndarray, labels_N: np.ndarray, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that have a label, as float32, normalised."""
    known_N = which_labelled(labels_N, split, "knn")
    chosen_NF = features_NF[known_N].astype(np.float32)
    check_finite(chosen_NF, f"{split} features")
    return normalised(chosen_NF), labels_N[known_N]
