"""Anchors that draw no images, or the wrong ones, are found by arithmetic alone."""

import numpy as np
import pytest

from pipeline.ambiguity import Attraction, attraction


def normalised(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def measured(
    targets: np.ndarray, anchors: np.ndarray, labels: np.ndarray | None = None, scale: float = 20
) -> Attraction:
    labels = np.full(len(targets), -1) if labels is None else labels
    halves = np.array_split(np.arange(len(targets)), 3)  # blocks must not matter
    return attraction(((targets[rows], labels[rows]) for rows in halves), anchors, scale)


def clusters(
    rng: np.random.Generator, centres: np.ndarray, each: int, noise: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """Return images around each centre, and the centre's number as their label."""
    labels = np.repeat(np.arange(len(centres)), each)
    scatter = noise * rng.standard_normal((len(labels), centres.shape[1]))
    return normalised(centres[labels] + scatter), labels


def test_counts_and_certainty_are_those_of_a_plain_softmax() -> None:
    rng = np.random.default_rng(0)
    anchors, targets = (normalised(rng.standard_normal((n, 16))) for n in (7, 300))
    labels = rng.integers(-1, 9, 300)  # -1 and 7, 8 have no anchor
    found = measured(targets, anchors, labels)
    logits = 20.0 * targets.astype(np.float64) @ anchors.T.astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    nearest = shares.argmax(axis=1)
    known = (labels >= 0) & (labels < 7)
    np.testing.assert_array_equal(found.nearest_N, nearest)
    for anchor in range(7):
        mine = nearest == anchor
        assert found.attracted_A[anchor] == mine.sum()
        assert found.certainty_A[anchor] == pytest.approx(shares[mine, anchor].mean(), rel=1e-4)
        assert found.labelled_A[anchor] == (labels == anchor).sum()
        assert found.right_A[anchor] == (mine & (labels == anchor)).sum()
        for other in range(7):
            wrong = (known & (labels == anchor) & (nearest == other)).sum() * (anchor != other)
            assert found.mistaken[anchor, other] == wrong
    ordered = np.sort(shares, axis=1)
    assert sum(found.undecided.values()) == (ordered[:, -1] < 2 * ordered[:, -2]).sum()


def test_plain_labels_score_near_zero_with_and_without_labels() -> None:
    rng = np.random.default_rng(1)
    anchors = normalised(rng.standard_normal((6, 32)))
    targets, labels = clusters(rng, anchors, 50, noise=0.02)
    assert measured(targets, anchors).ambiguity_A().max() < 0.1
    assert measured(targets, anchors, labels).ambiguity_A().max() == 0


def test_an_anchor_that_points_elsewhere_is_the_worst_one() -> None:
    rng = np.random.default_rng(2)
    centres = normalised(rng.standard_normal((6, 32)))
    targets, labels = clusters(rng, centres, 50, noise=0.02)
    anchors = centres.copy()
    anchors[4] = normalised(rng.standard_normal((1, 32)))[0]  # "crane", meant as the bird
    for found in (measured(targets, anchors), measured(targets, anchors, labels)):
        assert found.ambiguity_A().argmax() == 4
        assert found.ambiguity_A()[4] > 0.9


def test_two_anchors_that_no_image_tells_apart_are_near_duplicates() -> None:
    rng = np.random.default_rng(3)
    anchors = normalised(rng.standard_normal((5, 32)))
    anchors[3] = normalised((anchors[1] + 1e-3 * rng.standard_normal(32))[None])[0]
    targets, _ = clusters(rng, anchors[[0, 1, 2, 4]], 40, noise=0.02)
    found = measured(targets, anchors)
    [(one, other, share)] = found.near_duplicates()
    assert (one, other) == (1, 3)
    assert share == 1
    assert measured(targets, anchors[[0, 1, 2, 4]]).near_duplicates() == []


def test_anchors_of_one_text_are_near_duplicates_although_one_gets_no_image() -> None:
    rng = np.random.default_rng(4)
    anchors = normalised(rng.standard_normal((4, 32)))
    anchors[2] = anchors[0]
    targets, _ = clusters(rng, anchors[[0, 1, 3]], 40, noise=0.02)
    found = measured(targets, anchors)
    assert [pair[:2] for pair in found.near_duplicates()] == [(0, 2)]
    assert found.attracted_A[2] == 0


def test_no_image_is_no_finding() -> None:
    found = attraction([], np.eye(3, dtype=np.float32), 10.0)
    assert found.attracted_A.tolist() == [0, 0, 0]
    assert found.near_duplicates() == []
