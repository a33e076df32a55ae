"""Our logistic regression against scikit-learn's: the same minimum, other steps."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from pipeline.errors import ProbeError
from pipeline.probes import logistic, softmax
from pipeline.probes.choices import Precision
from pipeline.probes.logistic import Model, fit, problem
from pipeline.probes.spectrum import spectrum

N, F = 240, 16
TIGHT = 1e-10


def clouds(classes: int, count: int = N, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 rows of length 1 that overlap, far from 0, uneven in spread, and labels."""
    generator = np.random.default_rng(seed)
    labels_N = np.arange(count) % classes
    spread_F = (1 + np.arange(F)) ** -0.7
    centres = np.random.default_rng(9).normal(size=(classes, F)) * spread_F
    x_NF = 2 * spread_F + centres[labels_N] + 1.2 * generator.normal(size=(count, F)) * spread_F
    return x_NF / np.linalg.norm(x_NF, axis=1, keepdims=True), labels_N


def ours(x_NF: np.ndarray, labels_N: np.ndarray, C: float, **options: object) -> Model:
    given = problem(torch.from_numpy(x_NF), labels_N)
    return fit(given, C, **{"tol": TIGHT, "max_iter": 20_000, **options})  # type: ignore[arg-type]


def theirs(x_NF: np.ndarray, labels_N: np.ndarray, C: float) -> tuple[LogisticRegression, float]:
    """Return scikit-learn's model and what it minimised."""
    model = LogisticRegression(C=C, tol=TIGHT, max_iter=20_000).fit(x_NF, labels_N)
    logits = model.decision_function(x_NF)
    if logits.ndim == 1:
        logits = np.stack([np.zeros_like(logits), logits], axis=1)
    places = np.searchsorted(model.classes_, labels_N)
    losses = -log_softmax(logits, axis=1)[np.arange(len(logits)), places]
    return model, float(C * losses.sum() + (model.coef_**2).sum() / 2)


@pytest.mark.parametrize("precision", ["mixed", "float64"])
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
def test_reaches_scikit_learns_objective_and_predictions(
    classes: int, C: float, precision: Precision
) -> None:
    x_NF, labels_N = clouds(classes)
    model, objective = theirs(x_NF, labels_N, C)
    found = ours(x_NF, labels_N, C, precision=precision)
    assert found.objective == pytest.approx(objective, rel=1e-8)
    assert found.converged
    other_NF, _ = clouds(classes, 2000, seed=1)
    same = found.predict(torch.from_numpy(other_NF)) == model.predict(other_NF)
    assert same.mean() >= 0.999


@pytest.mark.parametrize("classes", [2, 10])
def test_reaches_scikit_learns_weights(classes: int) -> None:
    x_NF, labels_N = clouds(classes)
    model, _ = theirs(x_NF, labels_N, 1.0)
    found = ours(x_NF, labels_N, 1.0)
    first = 1 if classes == 2 else 0  # of two classes scikit-learn too keeps one row
    np.testing.assert_allclose(found.weights_CF[first:], model.coef_, atol=1e-5)
    np.testing.assert_allclose(found.biases_C[first:], model.intercept_, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("C", [0.01, 30.0])
def test_float32_alone_is_within_a_hundred_thousandth(classes: int, C: float) -> None:
    x_NF, labels_N = clouds(classes)
    model, objective = theirs(x_NF, labels_N, C)
    found = ours(x_NF.astype(np.float32), labels_N, C, precision="float32")
    assert found.objective == pytest.approx(objective, rel=1e-5)
    other_NF, other_N = clouds(classes, 2000, seed=1)
    accuracy = (found.predict(torch.from_numpy(other_NF)) == other_N).mean()
    assert accuracy == pytest.approx(model.score(other_NF, other_N), abs=0.001)


def test_is_scikit_learns_own_objective_at_any_weights() -> None:
    """The closure against the one that scikit-learn hands to L-BFGS: loss and gradient."""
    from sklearn._loss import HalfMultinomialLoss
    from sklearn.linear_model._linear_loss import LinearModelLoss

    x_NF, labels_N = clouds(5)
    generator = np.random.default_rng(3)
    weights_CF, biases_C = generator.normal(size=(5, F)), generator.normal(size=5)
    loss, into_w_CF, into_b_C = softmax.mean_loss(
        torch.from_numpy(x_NF),
        torch.from_numpy(labels_N),
        torch.from_numpy(weights_CF),
        torch.from_numpy(biases_C),
        torch.float64,
    )
    judge = LinearModelLoss(base_loss=HalfMultinomialLoss(n_classes=5), fit_intercept=True)
    coefficients = np.asfortranarray(np.column_stack([weights_CF, biases_C]))
    expected, slope = judge.loss_gradient(coefficients, x_NF, labels_N.astype(np.float64))
    assert loss == pytest.approx(expected, rel=1e-12)
    slope = slope.reshape(5, F + 1, order="F")
    np.testing.assert_allclose(into_w_CF, slope[:, :F], atol=1e-14)
    np.testing.assert_allclose(into_b_C, slope[:, F], atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chunks_sum_to_the_whole(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    x_NF, labels_N = clouds(7)
    generator = torch.Generator().manual_seed(0)
    arguments = (
        torch.from_numpy(x_NF),
        torch.from_numpy(labels_N),
        torch.randn(7, F, generator=generator, dtype=torch.float64),
        torch.randn(7, generator=generator, dtype=torch.float64),
        dtype,
    )
    whole = softmax.mean_loss(*arguments)
    monkeypatch.setattr(softmax, "_LEAST_ROWS", 33)  # 13 chunks, the last one short
    monkeypatch.setattr(softmax, "_CHUNK_NUMBERS", {"cpu": 0})
    parts = softmax.mean_loss(*arguments)
    close = 1e-6 if dtype == torch.float32 else 1e-13
    assert parts[0] == pytest.approx(whole[0], rel=close)
    for part, of_whole in zip(parts[1:], whole[1:], strict=True):
        torch.testing.assert_close(part, of_whole, rtol=0, atol=close)


def test_a_loss_too_small_for_a_share_is_still_counted() -> None:
    """exp(-200) is 0 in float32; the loss of a row that is so wrong is 200."""
    loss, _, _ = softmax.mean_loss(
        torch.ones(1, 1),
        torch.tensor([0]),
        torch.tensor([[0.0], [200.0]], dtype=torch.float64),
        torch.zeros(2, dtype=torch.float64),
        torch.float32,
    )
    assert loss == 200


@pytest.mark.parametrize("scale", [0.1, 10.0])
@pytest.mark.parametrize("precision", ["mixed", "float32"])
def test_c_goes_with_one_over_the_square_of_the_size(scale: float, precision: Precision) -> None:
    """x -> s x with C -> C / s^2 is W -> W / s, and the objective 1 / s^2 of what it was."""
    x_NF, labels_N = clouds(5)
    one = ours(x_NF, labels_N, 3.0, precision=precision)
    other = ours(scale * x_NF, labels_N, 3.0 / scale**2, precision=precision)
    close = 1e-9 if precision == "mixed" else 1e-5
    assert other.objective * scale**2 == pytest.approx(one.objective, rel=close)
    same = other.predict(torch.from_numpy(scale * x_NF)) == one.predict(torch.from_numpy(x_NF))
    assert same.all()


def test_takes_far_fewer_steps_than_scikit_learn() -> None:
    x_NF, labels_N = clouds(10)
    model, _ = theirs(x_NF, labels_N, 30.0)
    assert ours(x_NF, labels_N, 30.0).iterations < model.n_iter_[0] / 2


def test_a_warm_start_changes_the_way_only() -> None:
    x_NF, labels_N = clouds(10)
    cold = ours(x_NF, labels_N, 30.0)
    warm = ours(x_NF, labels_N, 30.0, start=ours(x_NF, labels_N, 15.0))
    assert warm.objective == pytest.approx(cold.objective, rel=1e-9)
    assert warm.evaluations < cold.evaluations
    # From the minimum itself there is hardly a way left.
    assert ours(x_NF, labels_N, 30.0, start=cold, tol=1e-7).iterations == 0


def test_a_warm_start_of_other_classes_is_refused() -> None:
    x_NF, labels_N = clouds(4)
    start = ours(x_NF, labels_N + 1, 1.0)
    with pytest.raises(ProbeError, match="needs the classes of the rows"):
        ours(x_NF, labels_N, 1.0, start=start)


def test_ends_where_scikit_learn_would_call_the_gradient_small() -> None:
    x_NF, labels_N = clouds(5)
    found = ours(x_NF, labels_N, 1.0, tol=1e-5)
    assert found.converged
    assert found.gradient <= 1e-5
    assert found.message == "no gradient is above tol"
    # The gradient as scikit-learn takes it, by weights, at the weights that came out.
    _, into_w_CF, _ = softmax.mean_loss(
        torch.from_numpy(x_NF),
        torch.from_numpy(labels_N),
        found.weights_CF,
        found.biases_C,
        torch.float64,
    )
    assert (into_w_CF + found.weights_CF / N).abs().max() <= 1e-5


def test_running_out_of_steps_is_no_convergence() -> None:
    found = ours(*clouds(5), 30.0, max_iter=3)
    assert (found.iterations, found.converged) == (3, False)


def test_fewer_rows_than_features_give_the_same_minimum() -> None:
    x_NF, labels_N = clouds(3, 9)
    assert spectrum(torch.from_numpy(x_NF)).directions_FR.shape == (F, 9)
    _, objective = theirs(x_NF, labels_N, 30.0)
    assert ours(x_NF, labels_N, 30.0).objective == pytest.approx(objective, rel=1e-8)


@pytest.mark.parametrize("what", ["a feature that is always 0", "two that are equal", "no spread"])
def test_degenerate_features_give_the_same_minimum(what: str) -> None:
    x_NF, labels_N = clouds(3)
    if what == "a feature that is always 0":
        x_NF[:, 4] = 0
    elif what == "two that are equal":
        x_NF[:, 4] = x_NF[:, 5]
    else:
        x_NF[:] = x_NF[0]
    _, objective = theirs(x_NF, labels_N, 30.0)
    assert ours(x_NF, labels_N, 30.0).objective == pytest.approx(objective, rel=1e-8)


def test_a_spectrum_of_some_rows_leads_to_the_same_minimum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x_NF, labels_N = clouds(5)
    monkeypatch.setattr("pipeline.probes.spectrum._ROWS_PER_FEATURE", 2)
    _, objective = theirs(x_NF, labels_N, 30.0)
    assert ours(x_NF, labels_N, 30.0).objective == pytest.approx(objective, rel=1e-8)


def test_products_are_exact_while_it_fits_and_as_before_after() -> None:
    seen = []
    whole = softmax.mean_loss

    def watched(*arguments: object) -> object:
        seen.append(torch.get_float32_matmul_precision())
        return whole(*arguments)  # type: ignore[arg-type]

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(logistic, "mean_loss", watched)
            ours(*clouds(3), 1.0)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {"highest"}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["mixed", "float64", "float32"])
def test_a_gpu_finds_the_same(precision: Precision) -> None:
    x_NF, labels_N = clouds(10)
    _, objective = theirs(x_NF, labels_N, 30.0)
    given = problem(torch.from_numpy(x_NF).cuda(), labels_N)
    found = fit(given, 30.0, tol=TIGHT, max_iter=20_000, precision=precision)
    close = 1e-5 if precision == "float32" else 1e-8
    assert found.objective == pytest.approx(objective, rel=close)


ARRAY_API = """
import json, sys
import numpy as np
import sklearn, torch
from sklearn.linear_model import LogisticRegression
from tests.probes.test_logistic import clouds, ours

x_NF, labels_N = clouds(10)
found = {}
for C in (0.316, 30.0):
    numpy_model = LogisticRegression(C=C, max_iter=1000).fit(x_NF, labels_N)
    with sklearn.config_context(array_api_dispatch=True):
        model = LogisticRegression(C=C, max_iter=1000)
        model.fit(torch.from_numpy(x_NF), torch.from_numpy(labels_N))
    apart = np.abs(model.coef_.numpy() - numpy_model.coef_).max()
    found[C] = [int(numpy_model.n_iter_[0]), int(model.n_iter_[0]), float(apart)]
print(json.dumps(found))
"""


def test_scikit_learn_on_torch_tensors_takes_its_own_way() -> None:
    """The oracle for a GPU: its array API path, here on the CPU, steps as its numpy path does."""
    environment = {**os.environ, "SCIPY_ARRAY_API": "1"}
    command = [sys.executable, "-c", ARRAY_API]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for steps, steps_of_torch, apart in json.loads(result.stdout).values():
        assert steps == steps_of_torch
        assert apart < 1e-8
