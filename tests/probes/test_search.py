"""The search for C climbs in eighths of a decade, and its choice is the probe's."""

from collections.abc import Callable

import pytest
import torch

from pipeline.probes.labelled import Labelled
from pipeline.probes.logistic import fit, problem
from pipeline.probes.search import as_C, climb, peak, search
from tests.probes.test_logistic import clouds


def hill(top: int) -> Callable[[int], float]:
    return lambda place: -abs(place - top)


@pytest.mark.parametrize("top", [-48, -47, -9, 0, 3, 13, 48])
def test_climbs_to_the_top_of_a_hill(top: int) -> None:
    assert peak(climb(hill(top))) == top


def test_tries_seven_places_and_two_for_each_halving() -> None:
    tried: list[int] = []

    def score(place: int) -> float:
        tried.append(place)
        return hill(3)(place)

    climb(score)
    assert tried == [-48, -32, -16, 0, 16, 32, 48, -8, 8, -4, 4, 2, 6, 1, 3]
    assert [as_C(place) for place in (-48, 0, 48)] == [1e-6, 1, 1e6]
    assert as_C(1) / as_C(0) == pytest.approx(10 ** (1 / 8))


def test_never_leaves_the_twelve_decades() -> None:
    assert all(abs(place) <= 48 for place in climb(hill(1000)))


def test_of_equals_the_smallest_c_is_taken() -> None:
    assert peak(climb(lambda place: 1.0)) == -48
    assert peak({0: 0.5, 8: 0.7, 16: 0.7}) == 8


def test_each_candidate_is_what_a_fit_of_its_own_scores() -> None:
    """Warm, early, in float32: and still the val accuracies of cold and exact fits."""
    x_NF, labels_N = clouds(5)
    val_NF, val_N = clouds(5, 300, seed=1)
    given, val = (
        problem(torch.from_numpy(x_NF), labels_N),
        Labelled(torch.from_numpy(val_NF), val_N),
    )
    best, tried = search(given, val, tol=1e-8, max_iter=1000)
    assert [candidate.C for candidate in tried] == sorted({candidate.C for candidate in tried})
    for candidate in tried:
        if 1e-3 < candidate.C < 1e3:
            cold = fit(given, candidate.C, tol=1e-8)
            accuracy = (cold.predict(val.x_NF) == val_N).mean()
            assert candidate.val_accuracy == pytest.approx(accuracy, abs=0.007)  # 2 of 300 rows
    greatest = max(candidate.val_accuracy for candidate in tried)
    assert (best.predict(val.x_NF) == val_N).mean() == greatest
