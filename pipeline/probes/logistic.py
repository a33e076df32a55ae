"""Multinomial logistic regression: scikit-learn's objective by L-BFGS, at any size, on any device.

Shape letters: N rows, F feature dimension, C classes, R directions, T rows of weights that are free
(C, or 1 of 2 classes).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.errors import ProbeError
from pipeline.probes.choices import Precision
from pipeline.probes.softmax import chunk_rows, mean_loss
from pipeline.probes.spectrum import Spectrum, spectrum

# As in scikit-learn; float32 cannot see such small gains, and looking for them takes long.
LEAST_GAIN = {"mixed": 64 * 2.0**-52, "float64": 64 * 2.0**-52, "float32": 1e-8}
_LINE_SEARCH_STEPS = 50
_FLOAT32_GAIN = 1e-6  # relative: a step of "mixed" that gains less is the last in float32


@dataclass(frozen=True)
class Problem:
    """Rows with their classes, float32 or float64: places_N counts in classes_C, int64, sorted."""

    x_NF: torch.Tensor
    places_N: torch.Tensor
    classes_C: np.ndarray
    spectrum: Spectrum


@dataclass(frozen=True)
class Model:
    """Weights and biases, float64, and how they were found.

    objective: C * sum(loss) + |W|^2 / 2, in float64. gradient: the largest of the mean loss's.
    """

    weights_CF: torch.Tensor
    biases_C: torch.Tensor
    classes_C: np.ndarray
    objective: float
    gradient: float
    iterations: int
    evaluations: int
    converged: bool
    message: str

    def predict(self, x_NF: torch.Tensor) -> np.ndarray:
        """Return the likeliest class of each row, int64."""
        found = []
        for x in torch.split(x_NF, chunk_rows(len(self.classes_C), x_NF.device)):
            logits = torch.addmm(self.biases_C, x.double(), self.weights_CF.T)
            found.append(logits.argmax(1).cpu().numpy())
        return np.asarray(self.classes_C[np.concatenate(found)])


def problem(x_NF: torch.Tensor, labels_N: np.ndarray) -> Problem:
    """Return the problem of telling these rows' classes apart; ProbeError if there is one only."""
    classes_C, places_N = np.unique(labels_N, return_inverse=True)
    if len(classes_C) < 2:
        raise ProbeError(
            "a linear probe needs at least 2 classes among the labelled train rows, found only "
            f"class {classes_C[0]}: give more train samples, or labels"
        )
    return Problem(
        x_NF, torch.from_numpy(places_N.reshape(-1)).to(x_NF.device), classes_C, spectrum(x_NF)
    )


def fit(
    given: Problem,
    C: float,
    *,
    tol: float,
    max_iter: int = 1000,
    precision: Precision = "mixed",
    least_gain: float | None = None,
    start: Model | None = None,
) -> Model:
    """Minimise C * sum(loss) + |W|^2 / 2, biases free, as scikit-learn's LogisticRegression does.

    Like scikit-learn, minimises the mean loss + |W|^2 / (2 C N) by scipy's L-BFGS-B, ends when no
    gradient of that is above `tol` or a step gains less than 64 eps of it, and gives two classes
    one row of weights. Unlike it, steps are taken along the features' principal directions, each
    scaled by the curvature at W = 0: another way to the same, only, minimum in fewer steps.

    precision: "mixed" is float32 while steps gain more than a millionth, then float64.
    least_gain: another share than 64 eps (float32: 1e-8). start: where to begin, by default at 0;
    its classes must be the same. Returns a model whether or not it has converged: it says so.
    """
    descent = _Descent(given, C, tol, precision)
    least = LEAST_GAIN[precision] if least_gain is None else least_gain
    at = descent.coordinates(start)
    with _exact_products():
        ended = descent.run(at, max_iter, least)
        if precision == "mixed" and descent.dtype == torch.float32 and ended.nit < max_iter:
            descent.refine()  # it ended before it came to float64
            more = descent.run(ended.x, max_iter - ended.nit, least)
            more.nit += ended.nit
            ended = more
        return descent.model(ended)


class _Descent:
    """What L-BFGS-B asks of the objective, in coordinates that make its curvature even."""

    def __init__(self, given: Problem, C: float, tol: float, precision: Precision) -> None:
        self.dtype = torch.float64 if precision == "float64" else torch.float32
        self._given, self._C, self._tol, self._mixed = given, C, tol, precision == "mixed"
        self._x_NF = given.x_NF.to(self.dtype)
        count = len(given.classes_C)
        self._penalty = 1 / (C * len(given.x_NF))
        curvature = (count - 1) / count**2  # of the mean loss, by a logit, where all are equal
        self._scale_R = (given.spectrum.variances_R * curvature + self._penalty).rsqrt()
        self._bias_scale = curvature**-0.5
        self._first = 1 if count == 2 else 0  # of two classes the first has no weights
        self._evaluations, self._largest, self._before, self._offset = 0, np.inf, np.inf, 0.0
        self._last: tuple[np.ndarray, tuple[float, np.ndarray]] | None = None

    def coordinates(self, start: Model | None) -> np.ndarray:
        """Return a model's coordinates, float64 [T * (R + 1)]; of none, zeros."""
        known = self._given.spectrum
        if start is None:
            free = len(self._given.classes_C) - self._first
            return np.zeros(free * (len(known.variances_R) + 1))
        if not np.array_equal(start.classes_C, self._given.classes_C):
            raise ProbeError("a warm start needs the classes of the rows, and has others")
        weights_TF = start.weights_CF[self._first :]
        shifted_T = start.biases_C[self._first :] + weights_TF @ known.mean_F
        return _joined(
            weights_TF @ known.directions_FR / self._scale_R, shifted_T / self._bias_scale
        )

    def run(self, at: np.ndarray, max_iter: int, least_gain: float) -> Any:
        """Minimise from `at`; return what scipy says."""
        from scipy.optimize import OptimizeResult, minimize

        self._before, _ = self(at)
        if self._largest <= self._tol:  # scipy would look for a step first
            return OptimizeResult(x=at, nit=0, status=0, message="the start is the minimum")
        limits = {"maxiter": max_iter, "maxfun": (_LINE_SEARCH_STEPS + 1) * (max_iter + 1)}
        # gtol is of the coordinates it sees: the gradient by the weights is tested after a step.
        rules = {"maxls": _LINE_SEARCH_STEPS, "gtol": 0.0, "ftol": least_gain}
        return minimize(
            self,
            at,
            jac=True,
            method="L-BFGS-B",
            callback=self._after_step,
            options={**limits, **rules},
        )

    def refine(self) -> None:
        """Take float64 from here on."""
        self.dtype, self._x_NF, self._last = torch.float64, self._given.x_NF.double(), None

    def model(self, ended: Any) -> Model:
        """Return the model where the descent ended."""
        weights_TF, biases_T = self._weights(ended.x)
        weights_CF, biases_C = self._padded(weights_TF), self._padded(biases_T)
        loss, _, _ = mean_loss(
            self._given.x_NF, self._given.places_N, weights_CF, biases_C, torch.float64
        )
        stopped = ended.status == 99  # by _after_step
        return Model(
            weights_CF,
            biases_C,
            self._given.classes_C,
            objective=self._C * loss * len(self._given.x_NF) + _half_square(weights_TF),
            gradient=self._largest,
            iterations=int(ended.nit),
            evaluations=self._evaluations,
            converged=stopped or ended.status == 0,
            message="no gradient is above tol" if stopped else str(ended.message),
        )

    def __call__(self, at: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the objective and its gradient by the coordinates."""
        if self._last is not None and np.array_equal(self._last[0], at):
            return self._last[1]
        known = self._given.spectrum
        weights_TF, biases_T = self._weights(at)
        weights_CF, biases_C = self._padded(weights_TF), self._padded(biases_T)
        loss, into_w_CF, into_b_C = mean_loss(
            self._x_NF, self._given.places_N, weights_CF, biases_C, self.dtype
        )
        into_w_TF = into_w_CF[self._first :] + self._penalty * weights_TF
        into_b_T = into_b_C[self._first :]
        self._evaluations += 1
        self._largest = max(float(into_w_TF.abs().max()), float(into_b_T.abs().max()))
        value = loss + self._penalty * _half_square(weights_TF) + self._offset
        along_TR = (into_w_TF - into_b_T[:, None] * known.mean_F) @ known.directions_FR
        slope = _joined(along_TR * self._scale_R, into_b_T * self._bias_scale)
        self._last = at.copy(), (value, slope)
        return value, slope

    def _after_step(self, intermediate_result: Any) -> None:
        value, before = intermediate_result.fun, self._before
        self._before = value
        small = before - value <= _FLOAT32_GAIN * max(abs(before), abs(value))
        if self._mixed and self.dtype == torch.float32:
            if small or self._largest <= self._tol:
                self.refine()
                # A jump from one precision's value to the other's would pass for a step's gain.
                self._offset = value - self(intermediate_result.x)[0]
        elif self._largest <= self._tol:
            raise StopIteration

    def _weights(self, at: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weights_TF and biases_T at these coordinates."""
        known = self._given.spectrum
        at_TR = torch.from_numpy(at).to(known.mean_F.device)
        at_TR = at_TR.reshape(-1, len(known.variances_R) + 1)
        weights_TF = (at_TR[:, :-1] * self._scale_R) @ known.directions_FR.T
        return weights_TF, at_TR[:, -1] * self._bias_scale - weights_TF @ known.mean_F

    def _padded(self, values_T: torch.Tensor) -> torch.Tensor:
        """Put zeros before, for a first class that has no weights."""
        none = values_T.new_zeros((self._first, *values_T.shape[1:]))
        return torch.cat([none, values_T])


def _half_square(weights_TF: torch.Tensor) -> float:
    return float((weights_TF**2).sum()) / 2


def _joined(weights_TR: torch.Tensor, biases_T: torch.Tensor) -> np.ndarray:
    joined: np.ndarray = torch.cat([weights_TR, biases_T[:, None]], 1).reshape(-1).cpu().numpy()
    return joined


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """Run the block without TF32 or bfloat16 in float32 products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
