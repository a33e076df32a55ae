"""Scores against values worked out by hand."""

import math

import numpy as np
import pytest

from pipeline.glue.reading import Examples, TaskData
from pipeline.glue.scores import (
    SCORES,
    accuracy,
    f1,
    matthews,
    mean_score,
    pearson,
    score_task,
    spearman,
    without_reading,
)
from pipeline.glue.tasks import TASKS

# Of ten: 4 right of class 1, 3 right of class 0, 2 falsely 1, 1 falsely 0.
TRUTH = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
SAID = np.array([1, 1, 1, 1, 0, 0, 0, 0, 1, 1])
# d = 0, 1, 1, 0, so that 1 - 6 * 2 / (4 * 15) = 0.8
RANKS = np.array([0.0, 1.0, 2.0, 5.0], np.float32)
SWAPPED = np.array([0.0, 2.0, 1.0, 5.0], np.float32)


def test_scores_of_classes() -> None:
    assert accuracy(TRUTH, SAID) == 0.7
    assert f1(TRUTH, SAID) == pytest.approx(2 * 4 / (2 * 4 + 2 + 1))
    assert matthews(TRUTH, SAID) == pytest.approx((4 * 3 - 2 * 1) / math.sqrt(6 * 5 * 5 * 4))


def test_scores_of_numbers() -> None:
    assert spearman(RANKS, SWAPPED) == pytest.approx(0.8)
    assert spearman(RANKS, RANKS**3) == pytest.approx(1)
    # Both have mean 2 and the squares of the deviations 4, 1, 0, 9 in sum.
    assert pearson(RANKS, SWAPPED) == pytest.approx((4 + 0 + 0 + 9) / 14)


@pytest.mark.parametrize("name", SCORES)
def test_the_same_answer_for_all_has_a_score(name: str) -> None:
    same = np.zeros(4, np.int64 if name in ("accuracy", "f1", "matthews") else np.float32)
    truth = np.array([0, 1, 1, 0], same.dtype)
    assert SCORES[name](truth, same) == (0.5 if name == "accuracy" else 0)


def examples(labels: np.ndarray) -> Examples:
    return Examples(("a",) * len(labels), (), labels, 0, "")


def data(train: np.ndarray, **dev: np.ndarray) -> TaskData:
    return TaskData(examples(train), {part.strip("_"): examples(one) for part, one in dev.items()})


def test_each_task_has_the_scores_of_glue() -> None:
    wanted = {
        "cola": ("matthews", "accuracy"),
        "mrpc": ("f1", "accuracy"),
        "qqp": ("f1", "accuracy"),
        "stsb": ("spearman", "pearson"),
    }
    for name, task in TASKS.items():
        assert task.scores == wanted.get(name, ("accuracy",))
    scores = score_task("mrpc", data(TRUTH, _=TRUTH), {"": SAID})
    assert scores == {"f1": pytest.approx(8 / 11), "accuracy": 0.7}


def test_mnli_has_the_mean_of_both_parts_and_each() -> None:
    parts = data(np.array([0, 1, 2]), matched=np.array([0, 1]), mismatched=np.array([0, 1, 2, 2]))
    said = {"matched": np.array([0, 1]), "mismatched": np.array([2, 1, 0, 0])}
    assert score_task("mnli", parts, said) == {
        "accuracy": 0.625,
        "accuracy_matched": 1.0,
        "accuracy_mismatched": 0.25,
    }


def test_the_mean_is_over_tasks_of_what_counts() -> None:
    scores = {
        "mrpc": {"accuracy": 0.5, "f1": 0.8},
        "cola": {"accuracy": 0.9, "matthews": -0.1},
        "mnli": {"accuracy": 0.5, "accuracy_matched": 0.4, "accuracy_mismatched": 0.6},
    }
    assert mean_score(scores) == pytest.approx((0.8 - 0.1 + 0.5) / 3)


def test_scores_without_reading_are_of_trains_commonest_class() -> None:
    train = np.array([1, 1, 0])
    assert without_reading("mrpc", data(train, _=TRUTH)) == {
        "f1": pytest.approx(2 * 5 / (2 * 5 + 5)),
        "accuracy": 0.5,
    }
    assert without_reading("stsb", data(RANKS, _=RANKS)) == {"spearman": 0, "pearson": 0}
