"""The linear probe beside scikit-learn's: one fit, a search for C, a slice of ImageNet.

Features are synthetic: normalised, far from 0, spread unevenly over their directions as an
encoder's are, classes that overlap. Each pair runs in turn on the same cores.

The slice is 1/50 of ImageNet's rows at its full number of classes (25.6k x 512 x 1000), so an
evaluation of the whole takes 50 times as long and no more memory, the rows apart: their 2.6 GB in
float32, 5.2 GB in float64, and both for a while with "mixed". A step is one evaluation, seldom
two. On paper: an evaluation is 4 N F C = 2.6 TFLOP, so 0.05 to 0.1 s on a GPU that does 25 to 50
float32 TFLOP/s, and a fit of 100 to 300 evaluations some tens of seconds; scikit-learn there, if it
fits, holds 4 or 5 matrices of N x C, 20 to 26 GB in float32.
"""

import json
import subprocess
import sys
import warnings
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.measure import Row, in_turn, ratios, row, seconds
from pipeline.probes.labelled import Labelled
from pipeline.probes.logistic import Model, fit, problem
from pipeline.probes.search import search

C = 30.0
ROWS, DIM, CLASSES = 50_000, 512, 100
SEARCH_ROWS, SEARCH_DIM, SEARCH_CLASSES = 10_000, 512, 50
SLICE_ROWS, SLICE_CLASSES = 25_600, 1000
STEPS = 1000
# scikit-learn's default stops by a gradient; ours goes on until a step gains less than this.
LEAST_GAIN = 1e-6


@dataclass(frozen=True)
class Clouds:
    """Rows of classes that overlap: x_NF float64, normalised."""

    x_NF: np.ndarray
    labels_N: np.ndarray


def clouds(rows: int, dim: int, classes: int, seed: int = 0) -> Clouds:
    """Make rows; those of another seed are of the same classes."""
    world, generator = np.random.default_rng(0), np.random.default_rng(seed + 1)
    spread_F = (1 + np.arange(dim)) ** -0.5
    mean_F = 3 * world.normal(size=dim) * spread_F
    centres_CF = world.normal(size=(classes, dim)) * spread_F
    labels_N = generator.integers(0, classes, rows)
    noise_NF = 3 * generator.normal(size=(rows, dim)) * spread_F
    x_NF = mean_F + centres_CF[labels_N] + noise_NF
    return Clouds(x_NF / np.linalg.norm(x_NF, axis=1, keepdims=True), labels_N)


def rows() -> list[Row]:
    """Measure."""
    return [*_one_fit(), *_search(), *_slice()]


def _theirs(data: Clouds, value: float) -> float:
    """Fit by scikit-learn's defaults, but for max_iter; return the objective reached."""
    from scipy.special import logsumexp
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says so when it runs out of steps
        model = LogisticRegression(C=value, max_iter=STEPS).fit(data.x_NF, data.labels_N)
    logits = model.decision_function(data.x_NF)
    losses_N = logsumexp(logits, axis=1) - logits[np.arange(len(logits)), data.labels_N]
    return float(value * losses_N.sum() + (model.coef_**2).sum() / 2)


def _ours(data: Clouds) -> Model:
    given = problem(torch.from_numpy(data.x_NF), data.labels_N)
    return fit(given, C, tol=1e-4 / len(data.labels_N), max_iter=STEPS, least_gain=LEAST_GAIN)


def _one_fit() -> list[Row]:
    data = clouds(ROWS, DIM, CLASSES)
    objectives: dict[str, list[float]] = {"ours": [], "theirs": []}
    ours, theirs = in_turn(
        lambda: seconds(lambda: objectives["ours"].append(_ours(data).objective)),
        lambda: seconds(lambda: objectives["theirs"].append(_theirs(data, C))),
        rounds=5,
    )
    what = f"{ROWS // 1000}k x {DIM} x {CLASSES}"
    gaps = ratios(objectives["ours"], objectives["theirs"])
    return [
        row(f"fit {what}, C={C:g}: ours", ours, "s", note=f"until a step gains {LEAST_GAIN:g}"),
        row(f"fit {what}, C={C:g}: scikit-learn", theirs, "s", note="float64, default tol"),
        row(f"fit {what}: scikit-learn / ours", ratios(theirs, ours), "x", ">= 2"),
        row(f"fit {what}: objective, ours / scikit-learn", gaps, "x", "<= 1"),
    ]


def _search() -> list[Row]:
    data = clouds(SEARCH_ROWS, SEARCH_DIM, SEARCH_CLASSES)
    other = clouds(SEARCH_ROWS // 4, SEARCH_DIM, SEARCH_CLASSES, seed=1)
    val = Labelled(torch.from_numpy(other.x_NF), other.labels_N)
    tol = 1e-4 / SEARCH_ROWS

    def ours() -> list[float]:
        given = problem(torch.from_numpy(data.x_NF), data.labels_N)
        best, tried = search(given, val, tol=tol, max_iter=STEPS)
        at = max(tried, key=lambda candidate: candidate.val_accuracy).C
        fit(given, at, tol=tol, max_iter=STEPS, start=best)
        return [candidate.C for candidate in tried] + [at]

    values = ours()
    found, theirs = in_turn(
        lambda: seconds(ours),
        lambda: seconds(lambda: [_theirs(data, value) for value in values]),
        rounds=5,
    )
    what = f"search of {len(values)} fits, {SEARCH_ROWS // 1000}k x {SEARCH_DIM} x {SEARCH_CLASSES}"
    return [
        row(f"{what}: ours", found, "s", note="warm, float32; the last fit exact"),
        row(f"{what}: scikit-learn's, from 0 each", theirs, "s", note="float64, default tol"),
        row(f"{what}: scikit-learn's / ours", ratios(theirs, found), "x", ">= 6"),
    ]


SLICE = """
import json, re
from pathlib import Path
import torch
from benchmarks.measure import seconds
from benchmarks.probe import DIM, SLICE_CLASSES, SLICE_ROWS
from pipeline.probes.softmax import mean_loss

generator = torch.Generator().manual_seed(0)
x = torch.nn.functional.normalize(torch.randn(SLICE_ROWS, DIM, generator=generator), dim=1)
y = torch.randint(0, SLICE_CLASSES, (SLICE_ROWS,), generator=generator)
w = torch.randn(SLICE_CLASSES, DIM, generator=generator).double()
b = torch.zeros(SLICE_CLASSES, dtype=torch.float64)
mean_loss(x[:256], y[:256], w, b, torch.float32)


def status(name):
    text = Path("/proc/self/status").read_text()
    return int(re.search(name + r":\\s+(\\d+) kB", text)[1]) / 1024


Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
before = status("VmRSS")
taken = [seconds(lambda: mean_loss(x, y, w, b, torch.float32)) for _ in range(3)]
print(json.dumps({"seconds": taken, "before": before, "peak": status("VmHWM")}))
"""


def _slice() -> list[Row]:
    command = [sys.executable, "-c", SLICE]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout)
    what = f"1/50 of ImageNet, {SLICE_ROWS / 1000:g}k x {DIM} x {SLICE_CLASSES}"
    whole = SLICE_ROWS * SLICE_CLASSES * 4 / 2**20
    return [
        row(f"{what}: one evaluation, float32", found["seconds"], "s", note="x 50 for the whole"),
        row(
            f"{what}: memory beyond the rows",
            [found["peak"] - found["before"]],
            "MiB",
            note=f"one N x C matrix is {whole:.0f} MiB",
        ),
        row(f"{what}: peak of the process", [found["peak"]], "MiB", note="torch and the rows"),
    ]
