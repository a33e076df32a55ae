"""The linear probe is scikit-learn's logistic regression, told honestly."""

from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from pipeline.contracts import Features
from pipeline.errors import ProbeError
from pipeline.probes.contract import Subject
from pipeline.probes.linear import LinearOptions, run

N, F, D = 90, 12, 8


def features(seed: int, count: int = N, classes: int = 3, scale: float = 1.0) -> Features:
    """Return overlapping clouds, one for each class; norms differ from row to row."""
    generator = np.random.default_rng(seed)
    labels_N = np.arange(count) % classes
    centres = np.random.default_rng(99).normal(size=(classes, F))
    features_NF = centres[labels_N] + 1.5 * generator.normal(size=(count, F))
    embedding_ND = features_NF[:, :D] + generator.normal(size=(count, D))
    return Features(
        (scale * features_NF).astype(np.float32),
        (embedding_ND / np.linalg.norm(embedding_ND, axis=1, keepdims=True)).astype(np.float32),
        labels_N.astype(np.int64),
        np.arange(count),
    )


def at(given: Features, rows: np.ndarray) -> Features:
    """Return some of the rows."""
    return Features(*(value[rows] for value in vars(given).values()))


def relabelled(given: Features, labels_N: np.ndarray) -> Features:
    return Features(given.features_NF, given.embedding_ND, labels_N, given.rows_N)


def probe(train: Features, test: Features, **options: Any) -> dict[str, float]:
    return run(Subject(test=test, train=train), LinearOptions(**options)).scores


def plain_fit(
    train_x: np.ndarray, labels_N: np.ndarray, C: float
) -> tuple[LogisticRegression, float]:
    """Fit far beyond what a probe needs; return the model and its objective."""
    model = LogisticRegression(C=C, tol=1e-10, max_iter=10_000).fit(train_x, labels_N)
    logits = model.decision_function(train_x)
    if logits.ndim == 1:
        logits = np.stack([np.zeros(len(logits)), logits], axis=1)
    losses = -log_softmax(logits, axis=1)[np.arange(len(labels_N)), labels_N]
    return model, float(C * losses.sum() + 0.5 * (model.coef_**2).sum())


def l2(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("C", [0.1, 30.0])
def test_is_a_plain_fit_on_normalised_features(C: float, classes: int) -> None:
    train, test = features(0, classes=classes), features(1, classes=classes)
    model, objective = plain_fit(l2(train.features_NF), train.labels_N, C)
    predicted_N = model.predict(l2(test.features_NF))
    scores = probe(train, test, C=C)
    assert scores["objective"] == pytest.approx(objective, rel=1e-6)
    assert scores["objective"] >= objective * (1 - 1e-9)  # the plain fit went further
    assert scores["accuracy"] == (predicted_N == test.labels_N).mean()
    # Right on every row if the labels are the plain fit's own words: the same predictions.
    assert probe(train, relabelled(test, predicted_N), C=C)["accuracy"] == 1
    assert scores["converged"] == 1
    assert scores["C"] == C


def test_scores_the_embedding_beside_the_features() -> None:
    train, test = features(0), features(1)
    model, _ = plain_fit(l2(train.embedding_ND), train.labels_N, 30.0)
    expected = (model.predict(l2(test.embedding_ND)) == test.labels_N).mean()
    scores = probe(train, test)
    assert scores["embedding_accuracy"] == expected
    assert scores["embedding_accuracy"] != scores["accuracy"]


def test_a_teacher_known_by_its_embedding_alone_is_fitted_once() -> None:
    train, test = (
        Features(f.embedding_ND, f.embedding_ND, f.labels_N, f.rows_N)
        for f in (features(0), features(1))
    )
    scores = probe(train, test)
    assert scores["accuracy"] == scores["embedding_accuracy"]


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_c_goes_with_one_over_the_square_of_the_features_size(scale: float) -> None:
    """x -> s x with C -> C / s^2 is the same problem: W -> W / s."""
    train, test = features(0), features(1)
    model, _ = plain_fit(train.features_NF.astype(np.float64), train.labels_N, 0.3)
    expected = relabelled(test, model.predict(test.features_NF.astype(np.float64)))
    scaled_train, scaled_test = features(0, scale=scale), features(1, scale=scale)
    scaled_test = relabelled(scaled_test, expected.labels_N)
    assert probe(train, expected, C=0.3, normalise="none")["accuracy"] == 1
    other = probe(scaled_train, scaled_test, C=0.3 / scale**2, normalise="none")
    assert other["accuracy"] == 1


def test_normalised_features_do_not_depend_on_their_size() -> None:
    one = probe(features(0), features(1))
    other = probe(features(0, scale=1000.0), features(1, scale=0.001))
    assert one["accuracy"] == other["accuracy"]
    assert one["objective"] == pytest.approx(other["objective"], rel=1e-6)


def test_a_fit_cut_short_says_so() -> None:
    scores = probe(features(0), features(1), max_iter=2)
    assert (scores["iterations"], scores["converged"]) == (2, 0)


def test_rows_without_a_label_are_left_out() -> None:
    train, test = features(0), features(1)
    holes = np.arange(N) % 7 == 0
    holed = [relabelled(f, np.where(holes, -1, f.labels_N)) for f in (train, test)]
    kept = [
        Features(
            f.features_NF[~holes], f.embedding_ND[~holes], f.labels_N[~holes], f.rows_N[~holes]
        )
        for f in (train, test)
    ]
    assert probe(*holed) == probe(*kept)


def test_a_class_that_only_the_test_rows_have_counts_as_wrong() -> None:
    train, test = features(0, classes=3), features(1, classes=4)
    assert probe(train, test)["accuracy"] <= (test.labels_N < 3).mean()


def test_class_numbers_may_have_gaps() -> None:
    train, test = features(0), features(1)
    spread = [relabelled(f, f.labels_N * 1000) for f in (train, test)]
    assert probe(*spread) == probe(train, test)


def test_changes_nothing_it_is_given() -> None:
    train, test = features(0), features(1)
    before = [value.copy() for f in (train, test) for value in vars(f).values()]
    probe(train, test)
    after = [value for f in (train, test) for value in vars(f).values()]
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


def test_gives_the_same_scores_twice() -> None:
    assert probe(features(0), features(1)) == probe(features(0), features(1))


def test_a_vector_of_zeros_is_a_row_like_any_other() -> None:
    train = features(0)
    train.features_NF[3] = 0
    assert 0 <= probe(train, features(1))["accuracy"] <= 1


class TestRefusals:
    @pytest.mark.parametrize("split", ["train", "test"])
    def test_no_label_at_all(self, split: str) -> None:
        given = {"train": features(0), "test": features(1)}
        given[split] = relabelled(given[split], np.full(N, -1))
        with pytest.raises(ProbeError, match=rf"no {split} sample has a label"):
            probe(given["train"], given["test"])

    def test_a_single_class(self) -> None:
        train = relabelled(features(0), np.zeros(N, np.int64))
        with pytest.raises(ProbeError, match="at least 2 classes"):
            probe(train, features(1))

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("split", ["train", "test"])
    @pytest.mark.parametrize("part", ["features_NF", "embedding_ND"])
    def test_features_that_are_not_finite(self, bad: float, split: str, part: str) -> None:
        given = {"train": features(0), "test": features(1)}
        getattr(given[split], part)[5, 2] = bad
        with pytest.raises(ProbeError, match=rf"the {split} features hold NaN or Inf"):
            probe(given["train"], given["test"])
