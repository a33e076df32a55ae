"""The few-shot probe: nested draws, honest means, classes that run out named."""

import json
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pipeline.errors import ProbeError
from pipeline.probes.contract import Result, Subject
from pipeline.probes.draw import shuffled
from pipeline.probes.fewshot import FewshotOptions, drawn, run
from tests.probes.test_linear import N, at, features, l2, relabelled


def scored(count: int = N, **options: Any) -> Result:
    return run(Subject(test=features(1), train=features(0, count)), FewshotOptions(**options))


def test_draws_so_many_of_each_class() -> None:
    labels_N = features(0).labels_N
    assert np.bincount(labels_N[drawn(labels_N, 8, 0)]).tolist() == [8, 8, 8]


def test_fewer_shots_are_among_more() -> None:
    labels_N = features(0).labels_N
    few, more = (set(drawn(labels_N, shot, 3).tolist()) for shot in (4, 16))
    assert few < more


def test_seeds_draw_apart_and_the_same_each_time() -> None:
    labels_N = features(0).labels_N
    one, other = drawn(labels_N, 8, 0), drawn(labels_N, 8, 1)
    assert one.tolist() != other.tolist()
    assert one.tolist() == drawn(labels_N, 8, 0).tolist()


def test_what_is_drawn_of_a_class_depends_on_no_other() -> None:
    labels_N = features(0).labels_N
    before = drawn(labels_N, 4, 0)
    other = np.where(labels_N == 2, -5, labels_N)
    after = drawn(other, 4, 0)
    assert [row for row in before if labels_N[row] < 2] == [r for r in after if other[r] >= 0]


def test_the_order_is_fixed_for_good() -> None:
    assert shuffled(8, 0, "class 3").tolist() == [2, 6, 4, 5, 7, 1, 0, 3]


def test_every_row_is_drawn_as_often_as_any() -> None:
    first = np.bincount([shuffled(5, seed, "x")[0] for seed in range(2000)], minlength=5)
    assert first == pytest.approx(400, abs=90)  # five standard deviations


def test_is_a_plain_fit_on_the_drawn_rows() -> None:
    train, test = features(0), features(1)
    expected = []
    for seed in range(3):
        few = at(train, drawn(train.labels_N, 4, seed))
        model = LogisticRegression(C=30.0, tol=1e-10, max_iter=10_000)
        model.fit(l2(few.features_NF), few.labels_N)
        expected.append((model.predict(l2(test.features_NF)) == test.labels_N).mean())
    result = scored(shots=(4,))
    assert result.details["accuracies"]["4"] == expected
    assert result.scores["accuracy_4"] == pytest.approx(np.mean(expected))
    assert result.scores["accuracy_4_spread"] == max(expected) - min(expected) > 0


def test_the_headline_is_that_of_the_most_shots() -> None:
    scores = scored(shots=(8, 1, 2)).scores
    assert scores["accuracy"] == scores["accuracy_8"] > scores["accuracy_1"]
    names = [f"accuracy_{shot}{end}" for shot in (1, 2, 8) for end in ("", "_spread")]
    assert list(scores) == ["accuracy", *names]


def test_a_class_with_fewer_images_takes_part_and_is_named() -> None:
    train = at(features(0), np.flatnonzero((features(0).labels_N != 1) | (np.arange(N) < 10)))
    result = run(Subject(test=features(1), train=train), FewshotOptions(shots=(2, 16)))
    assert result.details["classes_with_fewer_images"] == {"1": 3}
    assert np.bincount(train.labels_N[drawn(train.labels_N, 16, 0)]).tolist() == [16, 3, 16]
    assert json.loads(json.dumps(result.details)) == result.details


def test_gives_the_same_scores_twice() -> None:
    assert scored(shots=(2,)).scores == scored(shots=(2,)).scores


def test_the_embedding_can_be_asked_for() -> None:
    one, other = (scored(shots=(16,), features=part).scores for part in ("backbone", "embedding"))
    assert one != other


class TestRefusals:
    def test_no_label_at_all(self) -> None:
        train = relabelled(features(0), np.full(N, -1))
        with pytest.raises(ProbeError, match="no train sample has a label"):
            run(Subject(test=features(1), train=train), FewshotOptions())

    def test_a_single_class(self) -> None:
        train = relabelled(features(0), np.zeros(N, np.int64))
        with pytest.raises(ProbeError, match="at least 2 classes"):
            run(Subject(test=features(1), train=train), FewshotOptions())

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"shots": ()}, "shots are different whole numbers"),
            ({"shots": (0, 1)}, "shots are different whole numbers"),
            ({"shots": (2, 2)}, "shots are different whole numbers"),
            ({"seeds": 0}, "seeds is at least 1, not 0"),
            ({"C": 0.0}, "C is above 0"),
        ],
    )
    def test_options_that_mean_nothing(self, wrong: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            FewshotOptions(**wrong)
