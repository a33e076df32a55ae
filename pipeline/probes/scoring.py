"""The linear probe of one part of the features: choose C, fit, score.

Shape letters: N rows, F feature dimension.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.probes.choices import LinearOptions, Part
from pipeline.probes.contract import Result, Subject
from pipeline.probes.draw import shuffled
from pipeline.probes.labelled import Labelled, joined, labelled, normalised
from pipeline.probes.logistic import Model, Problem, fit, problem
from pipeline.probes.recall import recalls
from pipeline.probes.search import Candidate, search
from pipeline.probes.softmax import chunk_rows

_HELD_BACK = 10  # one train row of so many, to choose C by where there is no val split
_SEED = 0


@dataclass(frozen=True)
class _Choice:
    """The C to fit with, on which rows, and how it came about."""

    C: float
    train: Labelled
    start: Model | None = None
    by: str = "given"
    tried: tuple[Candidate, ...] = ()


def score(subject: Subject, part: Part, spec: LinearOptions) -> Result:
    """Return scores and details of one part of the features."""
    began = time.perf_counter()
    splits = _splits(subject, part, spec)
    choice = _choose(splits, spec)
    given = problem(choice.train.x_NF, choice.train.labels_N)
    model = _fit(given, choice, spec)
    recall = recalls(model.predict(splits["test"].x_NF), splits["test"].labels_N)
    scores = {
        "accuracy": recall.accuracy,
        "mean_per_class": float(np.mean(list(recall.per_class.values()))),
        "C": choice.C,
        "iterations": float(model.iterations),
        "objective": model.objective,
        "converged": float(model.converged),
    }
    details = {
        "C": choice.C,
        "chosen_by": choice.by,
        "candidates": [asdict(candidate) for candidate in choice.tried],
        "train_counts": choice.train.counts(),
        "recall": recall.per_class,
        **_ending(model, given, spec),
        "seconds": time.perf_counter() - began,
    }
    return Result(scores, details)


def _splits(subject: Subject, part: Part, spec: LinearOptions) -> dict[str, Labelled]:
    """Return the labelled, normalised rows of train and test, and of val if C is chosen by it."""
    given = {"train": subject.need("train"), "test": subject.test}
    if spec.C == "search" and subject.val is not None and (subject.val.labels_N >= 0).any():
        given["val"] = subject.val
    return normalised(
        {
            split: labelled(features, part, split, precision=spec.precision, device=spec.device)
            for split, features in given.items()
        },
        spec.normalise,
    )


def _choose(splits: dict[str, Labelled], spec: LinearOptions) -> _Choice:
    """Choose C; the rows to fit on with it are those of train, and of val if that chose."""
    train = splits["train"]
    if spec.C != "search":
        return _Choice(spec.C, train)
    if "val" in splits:
        fitted, val, by = train, splits["val"], "val split"
        whole = joined(train, val)
    else:
        order = shuffled(len(train.labels_N), _SEED, "held back to choose C")
        count = -(-len(order) // _HELD_BACK)
        fitted, val = train.at(np.sort(order[count:])), train.at(np.sort(order[:count]))
        whole, by = train, f"{count} of {len(order)} train rows, seed {_SEED}"
    given = problem(fitted.x_NF, fitted.labels_N)
    best, tried = search(given, val, tol=_tol(given), max_iter=spec.max_iter)
    C = max(tried, key=lambda candidate: candidate.val_accuracy).C
    return _Choice(C, whole, best, by, tuple(tried))


def _fit(given: Problem, choice: _Choice, spec: LinearOptions) -> Model:
    """Fit as exactly as asked, from where the search ended if it knew the same classes."""
    start = choice.start
    if start is not None and not np.array_equal(start.classes_C, given.classes_C):
        start = None
    return fit(
        given,
        choice.C,
        tol=_tol(given),
        max_iter=spec.max_iter,
        precision=spec.precision,
        start=start,
    )


def _tol(given: Problem) -> float:
    """Return what bounds the gradient of the mean loss.

    Before scikit-learn 1.4 its default of 1e-4 bounded the gradient of the sum.
    """
    return 1e-4 / len(given.x_NF)


def _ending(model: Model, given: Problem, spec: LinearOptions) -> dict[str, Any]:
    """Return how the fit was done and how it ended, as plain JSON."""
    return {
        "solver": "L-BFGS-B",
        "message": model.message,
        "iterations": model.iterations,
        "evaluations": model.evaluations,
        "largest_gradient": model.gradient,
        "precision": spec.precision,
        "normalise": spec.normalise,
        "device": str(given.x_NF.device),
        "rows": len(given.x_NF),
        "chunk_rows": chunk_rows(len(given.classes_C), given.x_NF.device),
    }
