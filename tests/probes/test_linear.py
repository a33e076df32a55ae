"""The linear probe is scikit-learn's logistic regression, told honestly."""

import json
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from pipeline.contracts import Features
from pipeline.errors import ProbeError
from pipeline.probes.contract import Result, Subject
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


def test_mean_per_class_is_scikit_learns_balanced_accuracy() -> None:
    train, test = features(0), features(1)
    uneven = at(test, np.flatnonzero((test.labels_N > 0) | (np.arange(N) < 20)))
    model, _ = plain_fit(l2(train.features_NF), train.labels_N, 30.0)
    predicted_N = model.predict(l2(uneven.features_NF))
    scores = probe(train, uneven)
    expected = balanced_accuracy_score(uneven.labels_N, predicted_N)
    assert scores["mean_per_class"] == pytest.approx(expected)
    assert scores["mean_per_class"] != scores["accuracy"]


def test_shuffled_labels_are_learned_at_chance() -> None:
    """The control: what is scored comes from the features' own classes, and from nothing else."""
    train, test = features(0, 200, classes=5), features(1, 400, classes=5)
    generator = np.random.default_rng(7)
    # A cloud is named as one, rightly or not: one shuffle says little.
    shuffles = [relabelled(train, generator.permutation(train.labels_N)) for _ in range(12)]
    accuracies = [probe(shuffle, test, features="backbone")["accuracy"] for shuffle in shuffles]
    assert np.mean(accuracies) == pytest.approx(0.2, abs=0.08)
    assert probe(train, test)["accuracy"] > 0.5


@pytest.mark.parametrize("part", ["backbone", "embedding"])
def test_one_part_alone_can_be_asked_for(part: Any) -> None:
    train, test = features(0), features(1)
    both, one = probe(train, test), probe(train, test, features=part)
    name = "accuracy" if part == "backbone" else "embedding_accuracy"
    assert one["accuracy"] == both[name]
    assert ("embedding_accuracy" in one) == (part == "embedding")


def test_standardised_is_scikit_learns_scaler_before_the_fit() -> None:
    train, test = features(0), features(1)
    train.features_NF[:, 3] *= 100
    test.features_NF[:, 3] *= 100
    train.features_NF[:, 5] = 7  # does not vary
    scaler = StandardScaler().fit(train.features_NF.astype(np.float64))
    model, objective = plain_fit(
        scaler.transform(train.features_NF.astype(np.float64)), train.labels_N, 0.1
    )
    found = run(
        Subject(test=test, train=train), LinearOptions(C=0.1, normalise="standardise")
    ).scores
    test.features_NF[:, 5] = 7
    predicted_N = model.predict(scaler.transform(test.features_NF.astype(np.float64)))
    assert found["objective"] == pytest.approx(objective, rel=1e-6)
    assert found["accuracy"] == (predicted_N == test.labels_N).mean()


@pytest.mark.parametrize("precision", ["mixed", "float64", "float32"])
def test_precision_moves_no_score(precision: Any) -> None:
    train, test = features(0), features(1)
    found, exact = probe(train, test, precision=precision), probe(train, test, precision="float64")
    assert found["accuracy"] == exact["accuracy"]
    assert found["objective"] == pytest.approx(exact["objective"], rel=1e-5)


class TestSearch:
    def scored(self, *, val: Features | None, **options: Any) -> Result:
        spec = LinearOptions(C="search", features="backbone", max_iter=200, **options)
        return run(Subject(test=features(1), train=features(0), val=val), spec)

    def test_chooses_by_val_and_fits_again_on_train_and_val(self) -> None:
        train, val, test = features(0), features(2), features(1)
        result = self.scored(val=val)
        details = result.details["backbone"]
        assert details["chosen_by"] == "val split"
        best = max(details["candidates"], key=lambda candidate: candidate["val_accuracy"])
        assert result.scores["C"] == details["C"] == best["C"]
        model, objective = plain_fit(
            l2(np.concatenate([train.features_NF, val.features_NF])),
            np.concatenate([train.labels_N, val.labels_N]),
            best["C"],
        )
        assert result.scores["objective"] == pytest.approx(objective, rel=1e-6)
        predicted_N = model.predict(l2(test.features_NF))
        assert result.scores["accuracy"] == (predicted_N == test.labels_N).mean()
        assert details["rows"] == 2 * N

    def test_without_val_a_tenth_of_train_chooses_and_all_of_it_is_fitted(self) -> None:
        result = self.scored(val=None)
        details = result.details["backbone"]
        assert details["chosen_by"] == "9 of 90 train rows, seed 0"
        ninths = [candidate["val_accuracy"] * 9 for candidate in details["candidates"]]
        assert ninths == pytest.approx(np.round(ninths))
        _, objective = plain_fit(
            l2(features(0).features_NF), features(0).labels_N, result.scores["C"]
        )
        assert result.scores["objective"] == pytest.approx(objective, rel=1e-6)
        assert details["rows"] == N

    def test_test_rows_choose_nothing(self) -> None:
        """Other test labels, other accuracy; the same C from the same candidates."""
        subjects = [
            Subject(test=test, train=features(0), val=features(2))
            for test in (features(1), relabelled(features(1), np.zeros(N, np.int64)))
        ]
        spec = LinearOptions(C="search", features="backbone", max_iter=200)
        one, other = (run(subject, spec) for subject in subjects)
        assert one.scores["accuracy"] != other.scores["accuracy"]
        assert one.details["backbone"]["candidates"] == other.details["backbone"]["candidates"]

    def test_a_fixed_c_leaves_val_alone(self) -> None:
        spec = LinearOptions()
        one = run(Subject(test=features(1), train=features(0), val=features(2)), spec)
        assert one.scores == probe(features(0), features(1))


def test_details_are_plain_json_and_say_what_a_report_needs() -> None:
    train = at(features(0), np.flatnonzero(np.arange(N) % 9 != 1))  # class 1 loses a third
    result = run(Subject(test=features(1), train=train), LinearOptions())
    details = json.loads(json.dumps(result.details))
    assert details == result.details
    assert list(details) == ["backbone", "embedding"]
    assert details["backbone"]["train_counts"] == {"0": 30, "1": 20, "2": 30}
    recall = details["backbone"]["recall"]
    assert np.mean(list(recall.values())) == pytest.approx(result.scores["mean_per_class"])
    assert details["backbone"]["seconds"] > 0
    assert details["backbone"]["message"]


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
