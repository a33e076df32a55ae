"""Recalls, confusions and worst images are what scikit-learn and a slow hand count say."""

import numpy as np
from sklearn.metrics import confusion_matrix, recall_score

from pipeline.report.classes import (
    confusion,
    confusion_chart,
    context_chart,
    recalls,
    recorded_confusion,
    worst_images,
    worst_pairs,
)
from pipeline.report.seen import Seen, said
from pipeline.report.svg import percent

GENERATOR = np.random.default_rng(0)
LABELS_N = GENERATOR.integers(0, 4, 60)
SAID_N = np.where(GENERATOR.random(60) < 0.6, LABELS_N, GENERATOR.integers(0, 4, 60))


def test_confusion_and_recalls_are_scikit_learns() -> None:
    counts_CC = confusion(LABELS_N, SAID_N, 4)
    assert np.array_equal(counts_CC, confusion_matrix(LABELS_N, SAID_N))
    assert np.allclose(recalls(LABELS_N, SAID_N, 4), recall_score(LABELS_N, SAID_N, average=None))


def test_unlabelled_rows_do_not_count_and_a_class_without_images_has_no_recall() -> None:
    labels_N = np.array([0, -1, 2])
    assert confusion(labels_N, np.array([0, 1, 0]), 3).sum() == 2
    assert np.array_equal(recalls(labels_N, np.array([0, 1, 0]), 3), [1, np.nan, 0], equal_nan=True)


def test_worst_pairs_are_in_order_of_their_share() -> None:
    counts_CC = np.array([[8, 2, 0], [1, 1, 0], [0, 3, 97]])
    found = [(pair.true, pair.said, pair.count) for pair in worst_pairs(list("abc"), counts_CC)]
    assert found == [("b", "a", 1), ("a", "b", 2), ("c", "b", 3)]


def test_many_classes_are_not_drawn_as_a_matrix() -> None:
    assert confusion_chart(["x"] * 30, np.eye(30)) is not None
    assert confusion_chart(["x"] * 31, np.eye(31)) is None


def test_worst_images_are_wrong_first_by_margin(seen: list[Seen]) -> None:
    for one in seen:
        found = worst_images(one, most=12)
        margins = [item.margin for item in found]
        assert margins == sorted(margins)
        wrong = int((one.said_N != one.ground.labels_N).sum())
        assert sum(margin < 0 for margin in margins) == wrong
        first = found[0]
        cosines = one.features.embedding_ND[first.row] @ one.ground.zeroshot.embeddings_AD.T
        names = list(one.ground.zeroshot.class_names)
        own = cosines[names.index(first.true)]
        assert np.isclose(first.margin, own - max(np.delete(cosines, names.index(first.true))))
        assert first.said != first.true


def test_context_is_shown_class_by_class_before_and_after(seen: list[Seen]) -> None:
    one = seen[0]
    chart = context_chart(one)
    assert chart is not None
    other = one.ground.labelled[1]
    assert chart.columns[1:3] == ("shapes-plain %", "shapes-context %")
    before = recall_score(one.ground.labels_N, one.said_N, average=None, zero_division=0)
    after_N = said(one.features, other)
    after = recall_score(one.ground.labels_N, after_N, average=None, zero_division=0)
    names = one.ground.zeroshot.class_names
    wanted = {
        name: (percent(b), percent(a)) for name, b, a in zip(names, before, after, strict=True)
    }
    assert {row[0]: row[1:3] for row in chart.rows} == wanted


def test_a_recorded_confusion_serves_where_the_cache_is_gone() -> None:
    zeroshot = {
        "class_names": ["a", "b"],
        "per_class": [
            {"label": 0, "name": "a", "images": 4, "recall": 0.75},
            {"label": 1, "name": "b", "images": 2, "recall": 1.0},
        ],
        "confusion": [[0, 1, 1]],
    }
    found = recorded_confusion({"student": {"zeroshot": zeroshot}})
    assert found is not None
    assert found[0] == ["a", "b"]
    assert found[1].tolist() == [[3, 1], [0, 2]]
    assert recorded_confusion(None) is None
    assert recorded_confusion({"student": {"linear": {}}}) is None
