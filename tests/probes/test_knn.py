"""The nearest-neighbour probe is scikit-learn's, with DINO's weighted vote beside the plain one."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from pipeline.contracts import Features
from pipeline.errors import ProbeError, RecipeError
from pipeline.options import parse
from pipeline.probes import nearness
from pipeline.probes.contract import Subject
from pipeline.probes.knn import KnnOptions, run
from tests.probes.samples import features, of_a_student, rows

CLASSES = 7


def given(seed: int, count: int = 150) -> Features:
    """Return overlapping classes, unevenly many of each."""
    labels_N = np.minimum(np.random.default_rng(seed).geometric(0.3, count) - 1, CLASSES - 1)
    return of_a_student(seed, labels_N)


def probe(train: Features, test: Features, **options: Any) -> dict[str, float]:
    return run(Subject(test=test, train=train), KnnOptions(**options)).scores


def at(whole: Features, places: np.ndarray) -> Features:
    return Features(*(value[places] for value in vars(whole).values()))


@pytest.mark.parametrize("vote", ["plain", "weighted"])
def test_one_neighbour_is_scikit_learns(vote: str) -> None:
    train, test = given(0), given(1)
    model = KNeighborsClassifier(1, metric="cosine").fit(train.features_NF, train.labels_N)
    predicted_N = model.predict(test.features_NF)
    scores = probe(train, test, vote=vote)
    assert scores["accuracy_k1"] == (predicted_N == test.labels_N).mean()
    assert 0 < scores["accuracy_k1"] < 1
    # Right on every row if the labels are scikit-learn's own words: the same predictions.
    assert probe(train, replace(test, labels_N=predicted_N), vote=vote)["accuracy_k1"] == 1


@pytest.mark.parametrize("k", [2, 3, 10, 20, 149, 150])
def test_the_plain_vote_is_scikit_learns_at_any_number(k: int) -> None:
    """Of classes with equal votes scikit-learn too takes the lower."""
    train, test = given(2), given(3)
    for part in ("features", "embedding"):
        values = [f.features_NF if part == "features" else f.embedding_ND for f in (train, test)]
        model = KNeighborsClassifier(k, metric="cosine").fit(values[0], train.labels_N)
        expected = (model.predict(values[1]) == test.labels_N).mean()
        name = f"accuracy_k{k}" if part == "features" else f"embedding_accuracy_k{k}"
        assert probe(train, test, vote="plain", ks=(k,))[name] == expected


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("k", [5, 20, 100])
def test_the_weighted_vote_is_scikit_learns_with_dinos_weights(k: int, temperature: float) -> None:
    train, test = given(4), given(5)
    model = KNeighborsClassifier(
        k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(train.features_NF, train.labels_N)
    predicted_N = model.predict(test.features_NF)
    relabelled = replace(test, labels_N=predicted_N)
    scores = probe(train, relabelled, temperature=temperature, ks=(k,))
    assert scores[f"accuracy_k{k}"] == 1


def test_near_neighbours_weigh_more_in_the_weighted_vote() -> None:
    """One at the same place against two at 60 degrees."""
    train_ND = np.zeros((3, 16), np.float32)
    train_ND[:, 0], train_ND[1:, 1] = [1, 0.5, 0.5], [0.75**0.5, -(0.75**0.5)]
    train = features(train_ND, np.array([1, 0, 0]))
    test = features(train_ND[:1], np.array([1]))
    assert probe(train, test, ks=(3,))["accuracy_k3"] == 1
    assert probe(train, test, ks=(3,), vote="plain")["accuracy_k3"] == 0


def test_the_headline_is_of_20_neighbours_or_of_all_there_are() -> None:
    train, test = given(0), given(1)
    scores = probe(train, test)
    assert (scores["accuracy"], scores["k"]) == (scores["accuracy_k20"], 20)
    assert "accuracy_k200" not in scores  # of 150
    few = probe(at(train, np.arange(15)), test)
    assert few["k"] == 15
    of_each = ["accuracy", "accuracy_k1", "accuracy_k10"]
    assert set(few) == {"k", *of_each, *(f"embedding_{name}" for name in of_each)}
    assert few["accuracy"] == probe(at(train, np.arange(15)), test, ks=(15,))["accuracy_k15"]


def test_a_teacher_known_by_its_embedding_alone_has_it_twice() -> None:
    train, test = (features(f.embedding_ND, f.labels_N) for f in (given(0), given(1)))
    scores = probe(train, test)
    assert scores["accuracy_k10"] == scores["embedding_accuracy_k10"]
    assert scores["embedding_accuracy"] == probe(given(0), given(1))["embedding_accuracy"]
    assert scores["accuracy"] != probe(given(0), given(1))["accuracy"]


@pytest.mark.parametrize("count", [40, 1100])
def test_of_equally_near_rows_the_earlier_votes(count: int) -> None:
    """The same image under two labels."""
    once_ND, test_ND = rows(count, seed=0), rows(60, seed=1)
    twice_ND = np.concatenate([once_ND, once_ND])
    labels_N = np.repeat([1, 0], count)
    scores = probe(features(twice_ND, labels_N), features(test_ND, np.ones(60, np.int64)))
    assert scores["accuracy_k1"] == 1


def test_only_directions_count() -> None:
    train, test = given(0), given(1)
    scale_N1 = np.random.default_rng(0).uniform(0.01, 100, size=(150, 1)).astype(np.float32)
    scaled = [replace(f, features_NF=f.features_NF * scale_N1) for f in (train, test)]
    assert probe(*scaled) == probe(train, test)


def test_rows_without_a_label_are_left_out() -> None:
    train, test = given(0), given(1)
    holes = np.arange(150) % 7 == 0
    holed = [replace(f, labels_N=np.where(holes, -1, f.labels_N)) for f in (train, test)]
    kept = [at(f, np.flatnonzero(~holes)) for f in (train, test)]
    assert probe(*holed) == probe(*kept)


def test_a_class_that_only_the_test_rows_have_counts_as_wrong() -> None:
    train = given(0)
    scores = probe(train, replace(train, labels_N=np.where(train.labels_N == 0, 50, 1)), ks=(1,))
    assert scores["accuracy_k1"] == (train.labels_N == 1).mean()


@pytest.mark.parametrize("vote", ["plain", "weighted"])
def test_many_blocks_are_as_one(monkeypatch: pytest.MonkeyPatch, vote: str) -> None:
    train, test = given(0), given(1)
    whole = probe(train, test, vote=vote)
    monkeypatch.setattr(nearness, "BLOCK_BYTES", 11 * 150 * 4)
    assert probe(train, test, vote=vote) == whole


def test_changes_nothing_it_is_given() -> None:
    train, test = given(0), given(1)
    before = [value.copy() for f in (train, test) for value in vars(f).values()]
    probe(train, test)
    after = [value for f in (train, test) for value in vars(f).values()]
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


class TestRefusals:
    @pytest.mark.parametrize("split", ["train", "test"])
    def test_no_label_at_all(self, split: str) -> None:
        parts = {"train": given(0), "test": given(1)}
        parts[split] = replace(parts[split], labels_N=np.full(150, -1))
        with pytest.raises(ProbeError, match=rf"no {split} sample has a label.*knn"):
            probe(**parts)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("split", ["train", "test"])
    @pytest.mark.parametrize("part", ["features_NF", "embedding_ND"])
    def test_features_that_are_not_finite(self, bad: float, split: str, part: str) -> None:
        parts = {"train": given(0), "test": given(1)}
        getattr(parts[split], part)[5, 2] = bad
        with pytest.raises(ProbeError, match=rf"the {split} features hold NaN or Inf"):
            probe(**parts)

    def test_features_of_two_dimensions(self) -> None:
        train, test = given(0), given(1)
        with pytest.raises(ProbeError, match="have 32 dimensions, the test features 31"):
            probe(train, replace(test, features_NF=test.features_NF[:, 1:]))

    def test_no_train_rows(self) -> None:
        with pytest.raises(ProbeError, match="labelled train samples"):
            run(Subject(test=given(0)), KnnOptions())

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ({"k": 0}, "k is at least 1, not 0"),
            ({"ks": [5, -1]}, "ks are at least 1, not -1"),
            ({"temperature": 0}, "temperature is above 0, not 0"),
            ({"vote": "loud"}, "vote"),
        ],
    )
    def test_options_that_mean_nothing(self, option: dict[str, Any], message: str) -> None:
        with pytest.raises(RecipeError, match=message):
            parse(KnnOptions, option, where="test")
