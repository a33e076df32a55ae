"""Anchors that draw no images, or the wrong ones, are found by arithmetic alone."""

import numpy as np
import pytest

from pipeline.ambiguity import Attraction, ClassAnchors, attraction


def normalised(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def classes_of(anchors: np.ndarray) -> ClassAnchors:
    """Return anchors of a class each."""
    return ClassAnchors.of(anchors, [f"class {i}" for i in range(len(anchors))])


def measured(
    targets: np.ndarray,
    anchors: np.ndarray | ClassAnchors,
    labels: np.ndarray | None = None,
    scale: float = 20,
) -> Attraction:
    classes = anchors if isinstance(anchors, ClassAnchors) else classes_of(anchors)
    labels = np.full(len(targets), -1) if labels is None else labels
    parts = np.array_split(np.arange(len(targets)), 3)  # blocks must not matter
    return attraction(((targets[rows], labels[rows]) for rows in parts), classes, scale)


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
        assert found.attracted_C[anchor] == mine.sum()
        assert found.certainty_C[anchor] == pytest.approx(shares[mine, anchor].mean(), rel=1e-4)
        assert found.labelled_C[anchor] == (labels == anchor).sum()
        assert found.known_C[anchor] == (mine & known).sum()
        assert found.right_C[anchor] == (mine & (labels == anchor)).sum()
        for other in range(7):
            wrong = (known & (labels == anchor) & (nearest == other)).sum() * (anchor != other)
            assert found.mistaken[anchor, other] == wrong
    ordered = np.sort(shares, axis=1)
    assert sum(found.undecided.values()) == (ordered[:, -1] < 2 * ordered[:, -2]).sum()


def test_plain_labels_score_near_zero_with_and_without_labels() -> None:
    rng = np.random.default_rng(1)
    anchors = normalised(rng.standard_normal((6, 32)))
    targets, labels = clusters(rng, anchors, 50, noise=0.02)
    assert measured(targets, anchors).ambiguity_C().max() < 0.1
    assert measured(targets, anchors, labels).ambiguity_C().max() == 0


def test_an_anchor_that_points_elsewhere_is_the_worst_one() -> None:
    rng = np.random.default_rng(2)
    centres = normalised(rng.standard_normal((6, 32)))
    targets, labels = clusters(rng, centres, 50, noise=0.02)
    anchors = centres.copy()
    anchors[4] = normalised(rng.standard_normal((1, 32)))[0]  # "crane", meant as the bird
    for found in (measured(targets, anchors), measured(targets, anchors, labels)):
        assert found.ambiguity_C().argmax() == 4
        assert found.ambiguity_C()[4] > 0.9


def test_few_labels_among_many_images_judge_by_those_that_have_one() -> None:
    """As STL-10's train split, where 1 image in 21 is labelled."""
    rng = np.random.default_rng(5)
    anchors = normalised(rng.standard_normal((6, 32)))
    targets, labels = clusters(rng, anchors, 63, noise=0.02)
    labels[np.arange(len(labels)) % 21 != 0] = -1
    found = measured(targets, anchors, labels)
    assert found.labelled_C.tolist() == found.known_C.tolist() == found.right_C.tolist() == [3] * 6
    assert found.attracted_C.tolist() == [63] * 6
    assert found.ambiguity_C().tolist() == [0] * 6
    np.testing.assert_allclose(found.expected_C(), 63)


def test_of_a_class_that_no_label_names_nothing_is_said() -> None:
    rng = np.random.default_rng(6)
    anchors = normalised(rng.standard_normal((4, 32)))
    targets, labels = clusters(rng, anchors[:3], 20, noise=0.02)
    found = measured(targets, anchors, labels).ambiguity_C()
    assert found[:3].tolist() == [0, 0, 0]
    assert np.isnan(found[3])


def test_anchors_of_one_class_are_no_rivals_of_each_other() -> None:
    """Separate anchors of a class judge as the class: its closest one to an image counts."""
    rng = np.random.default_rng(7)
    centres = normalised(rng.standard_normal((4, 32)))
    targets, labels = clusters(rng, centres, 30, noise=0.02)
    near = [normalised(centres + 0.05 * rng.standard_normal(centres.shape)) for _ in range(3)]
    names = [f"class {i}" for i in range(4)]
    apart = ClassAnchors.of(np.concatenate(near), names * 3)  # not a class's anchors together
    assert apart.names == tuple(names)
    cosines = np.max([targets @ anchors.T for anchors in near], axis=0)
    np.testing.assert_allclose(apart.cosines(targets), cosines, atol=1e-6)
    [(_, between)] = apart.between()
    wanted = np.max([one @ other.T for one in near for other in near], axis=0)
    np.testing.assert_allclose(between, wanted, atol=1e-6)
    assert apart.cosine(1, 3) == pytest.approx(wanted[1, 3], abs=1e-6)
    found = measured(targets, apart, labels)
    assert found.right_C.tolist() == [30] * 4
    assert found.torn() == {}
    assert apart.same() == []


def test_two_anchors_that_no_image_tells_apart_are_near_duplicates() -> None:
    rng = np.random.default_rng(3)
    anchors = normalised(rng.standard_normal((5, 32)))
    anchors[3] = normalised((anchors[1] + 1e-2 * rng.standard_normal(32))[None])[0]
    targets, _ = clusters(rng, anchors[[0, 1, 2, 4]], 40, noise=0.02)
    assert measured(targets, anchors).torn() == {(1, 3): 1}
    assert measured(targets, anchors[[0, 1, 2, 4]]).torn() == {}
    assert classes_of(anchors).same() == []


def test_anchors_of_one_text_are_the_same_whether_or_not_an_image_comes_near_them() -> None:
    rng = np.random.default_rng(4)
    anchors = normalised(rng.standard_normal((2100, 32)))
    anchors[[2, 2050]] = anchors[0]
    anchors[9] = normalised((anchors[8] + 1e-4 * rng.standard_normal(32))[None])[0]
    assert classes_of(anchors).same() == [(0, 2), (8, 9), (0, 2050)]
    targets, _ = clusters(rng, anchors[[0, 1]], 40, noise=0.02)
    found = measured(targets, anchors[:10])
    assert list(found.torn()) == [(0, 2)]
    assert found.attracted_C[[2, 8, 9]].tolist() == [0, 0, 0]


def test_no_image_is_no_finding() -> None:
    found = attraction([], classes_of(np.eye(3, dtype=np.float32)), 10.0)
    assert found.attracted_C.tolist() == [0, 0, 0]
    assert found.torn() == {}
