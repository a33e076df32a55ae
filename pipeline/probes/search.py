"""The search for C: coarse over twelve decades, then finer and finer around the peak.

The protocol of Kornblith et al. (Do Better ImageNet Models Transfer Better?) and of CLIP (Learning
Transferable Visual Models, A.3).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.probes.labelled import Labelled
from pipeline.probes.logistic import Model, Problem, fit

PER_DECADE = 8  # the finest step
_LAST = 6 * PER_DECADE  # from 1e-6 to 1e6
_COARSE = 2 * PER_DECADE
# A step that gains so little moves no decision; the fit by the C that wins goes on from there.
_LEAST_GAIN = 1e-6


@dataclass(frozen=True)
class Candidate:
    """A C that was tried, and the share of the val rows it got right."""

    C: float
    val_accuracy: float
    iterations: int


def climb(score: Callable[[int], float]) -> dict[int, float]:
    """Return the scores of the places that were tried, eighths of a decade from -48 to 48.

    Every 16th first, in ascending order, then both sides of the best at half the distance, down to
    1. Of equal scores the lowest place counts as the best: the simplest of equal models.
    """
    found = {place: score(place) for place in range(-_LAST, _LAST + 1, _COARSE)}
    step = _COARSE // 2
    while step:
        best = peak(found)
        for place in (best - step, best + step):
            if abs(place) <= _LAST:
                found[place] = score(place)
        step //= 2
    return found


def peak(found: dict[int, float]) -> int:
    """Return the place of the best score, the lowest of equals."""
    return min(found, key=lambda place: (-found[place], place))


def search(
    given: Problem, val: Labelled, *, tol: float, max_iter: int
) -> tuple[Model, list[Candidate]]:
    """Fit at every C of a climb; return the model of the best on val, and all that were tried.

    Fits are float32, end early, and start from the one of the nearest smaller C. Candidates are in
    ascending order of C; the best is the first of those with the greatest val_accuracy.
    """
    models: dict[int, Model] = {}

    def score(place: int) -> float:
        below = max((other for other in models if other < place), default=None)
        models[place] = fit(
            given,
            as_C(place),
            tol=tol,
            max_iter=max_iter,
            precision="float32",
            least_gain=_LEAST_GAIN,
            start=None if below is None else models[below],
        )
        return float(np.mean(models[place].predict(val.x_NF) == val.labels_N))

    found = climb(score)
    tried = [
        Candidate(as_C(place), found[place], models[place].iterations) for place in sorted(found)
    ]
    return models[peak(found)], tried


def as_C(place: int) -> float:
    """Return the C of a place."""
    return float(10.0 ** (place / PER_DECADE))
