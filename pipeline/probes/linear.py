"""Linear probe: scikit-learn's L-BFGS logistic regression on frozen features.

Shape letters: N rows, F feature dimension.
"""

import warnings
from typing import Any, Literal

import numpy as np

from pipeline.errors import ProbeError
from pipeline.options import options
from pipeline.probes.contract import Result, Subject


@options
class LinearOptions:
    """The document's probe (BeamCLIP, section 4.1): L-BFGS, C = 30.

    scikit-learn minimises C * sum(loss) + |W|^2 / 2, so C goes with 1 / norm^2 of the features: 30
    on features of norm 1 is CLIP's 0.316 on features of norm 10.
    """

    C: float = 30.0
    max_iter: int = 1000
    normalise: Literal["l2", "none"] = "l2"

    def __post_init__(self) -> None:
        if self.C <= 0:
            raise ValueError(f"C is above 0, not {self.C}")
        if self.max_iter < 1:
            raise ValueError(f"max_iter is at least 1, not {self.max_iter}")


def run(subject: Subject, spec: LinearOptions) -> Result:
    """Fit on train, score on test: accuracy of backbone features, and of the embedding beside it.

    Scores: accuracy, embedding_accuracy (shares of the labelled test rows), C, iterations,
    objective (what was minimised) and converged (1 or 0) of the backbone's fit. Raises ProbeError
    without labels or classes to tell apart, or for features that are not finite.
    """
    train, test = subject.need("train"), subject.test
    scores = _fit(train.features_NF, train.labels_N, test.features_NF, test.labels_N, spec)
    if train.features_NF is train.embedding_ND:  # a teacher, known by its embedding alone
        return Result({**scores, "embedding_accuracy": scores["accuracy"]})
    other = _fit(train.embedding_ND, train.labels_N, test.embedding_ND, test.labels_N, spec)
    return Result({**scores, "embedding_accuracy": other["accuracy"]})


def _fit(
    train_NF: np.ndarray,
    train_labels_N: np.ndarray,
    test_NF: np.ndarray,
    test_labels_N: np.ndarray,
    spec: LinearOptions,
) -> dict[str, float]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    train_x, train_y = _labelled(train_NF, train_labels_N, spec, "train")
    test_x, test_y = _labelled(test_NF, test_labels_N, spec, "test")
    if len(np.unique(train_y)) < 2:
        raise ProbeError("a linear probe needs at least 2 classes among the labelled train rows")
    # Since scikit-learn 1.4 `tol` bounds the gradient of the mean loss; the earlier and stricter
    # rule, on the sum, is this one.
    model = LogisticRegression(C=spec.C, max_iter=spec.max_iter, tol=1e-4 / len(train_y))
    with warnings.catch_warnings(record=True) as caught:  # reported as a score instead
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(train_x, train_y)
    stopped_early = any(issubclass(item.category, ConvergenceWarning) for item in caught)
    return {
        "accuracy": float((model.predict(test_x) == test_y).mean()),
        "C": spec.C,
        "iterations": float(model.n_iter_.max()),
        "objective": _objective(model, train_x, train_y),
        "converged": float(not stopped_early),
    }


def _objective(model: Any, x_NF: np.ndarray, labels_N: np.ndarray) -> float:
    """Return C * sum(loss) + |W|^2 / 2 (biases are free) where the fit ended."""
    from scipy.special import log_softmax

    logits = model.decision_function(x_NF)
    if logits.ndim == 1:  # two classes share one row of weights
        logits = np.stack([np.zeros_like(logits), logits], axis=1)
    places_N = np.searchsorted(model.classes_, labels_N)
    losses_N = -log_softmax(logits, axis=1)[np.arange(len(labels_N)), places_N]
    return float(model.C * losses_N.sum() + (model.coef_**2).sum() / 2)


def _labelled(
    features_NF: np.ndarray, labels_N: np.ndarray, spec: LinearOptions, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that have a label, as float64, normalised if asked for."""
    known = labels_N >= 0
    if not known.any():
        raise ProbeError(f"no {split} sample has a label (.cls): the linear probe needs them")
    chosen = features_NF[known].astype(np.float64)
    if not np.isfinite(chosen).all():
        raise ProbeError(f"the {split} features hold NaN or Inf: training has diverged")
    if spec.normalise == "l2":
        chosen /= np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-12)
    return chosen, labels_N[known]
