"""Few-shot probe: the linear probe with a few train images of each class.

Shape letters: N rows.
"""

from typing import TYPE_CHECKING

import numpy as np

from pipeline.contracts import Features
from pipeline.options import options
from pipeline.probes.choices import Device, Normalise, Part, Precision
from pipeline.probes.contract import Result, Subject
from pipeline.probes.draw import shuffled
from pipeline.probes.recall import recalls

if TYPE_CHECKING:
    from pipeline.probes.labelled import Labelled


@options
class FewshotOptions:
    """How many images of each class, and how often they are drawn anew.

    The other options are the linear probe's own.
    """

    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    seeds: int = 3
    C: float = 30.0
    features: Part = "backbone"
    max_iter: int = 1000
    normalise: Normalise = "l2"
    precision: Precision = "mixed"
    device: Device = "auto"

    def __post_init__(self) -> None:
        if not self.shots or min(self.shots) < 1 or len(set(self.shots)) < len(self.shots):
            raise ValueError(f"shots are different whole numbers from 1 up, not {self.shots}")
        for name in ("seeds", "max_iter"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")
        if self.C <= 0:
            raise ValueError(f"C is above 0, not {self.C}")


def run(subject: Subject, spec: FewshotOptions) -> Result:
    """Fit on so many train images of each class, score on all of test, for every seed.

    The images of fewer shots are among those of more. A class that has fewer takes part with what
    it has: details name it. Scores, of each shot k: accuracy_k, the mean over seeds, and
    accuracy_k_spread, their greatest minus their least; accuracy is that of the largest k. Raises
    ProbeError as the linear probe does.
    """
    splits = _splits(subject, spec)
    train, test = splits["train"], splits["test"]
    accuracies = {
        shot: [
            _accuracy(train.at(drawn(train.labels_N, shot, seed)), test, spec)
            for seed in range(spec.seeds)
        ]
        for shot in sorted(spec.shots)
    }
    scores = {"accuracy": float(np.mean(accuracies[max(spec.shots)]))}
    for shot, values in accuracies.items():
        scores[f"accuracy_{shot}"] = float(np.mean(values))
        scores[f"accuracy_{shot}_spread"] = max(values) - min(values)
    counts = train.counts()
    few = {name: count for name, count in counts.items() if count < max(spec.shots)}
    details = {
        "accuracies": {str(shot): values for shot, values in accuracies.items()},
        "classes": len(counts),
        "classes_with_fewer_images": few,
    }
    return Result(scores, details)


def drawn(labels_N: np.ndarray, shot: int, seed: int) -> np.ndarray:
    """Return the rows of up to `shot` images of each class, int64, ascending.

    A class's order is a function of its rows' number, its own number and the seed: what is drawn
    of it depends on no other class, and fewer shots are the first of more.
    """
    chosen = []
    for label in np.unique(labels_N):
        rows = np.flatnonzero(labels_N == label)
        chosen.append(rows[shuffled(len(rows), seed, f"class {label}")[:shot]])
    return np.sort(np.concatenate(chosen))


def _splits(subject: Subject, spec: FewshotOptions) -> "dict[str, Labelled]":
    """Return the labelled rows of train and test."""
    from pipeline.probes.labelled import labelled

    train: Features = subject.need("train")
    # A teacher is known by its embedding alone.
    part = "embedding" if train.features_NF is train.embedding_ND else spec.features
    return {
        split: labelled(features, part, split, precision=spec.precision, device=spec.device)
        for split, features in {"train": train, "test": subject.test}.items()
    }


def _accuracy(few: "Labelled", test: "Labelled", spec: FewshotOptions) -> float:
    """Return the share of the test rows that a fit on these few names rightly."""
    from pipeline.probes.labelled import normalised
    from pipeline.probes.logistic import fit, problem

    parts = normalised({"train": few, "test": test}, spec.normalise)
    given = problem(parts["train"].x_NF, few.labels_N)
    model = fit(
        given,
        spec.C,
        tol=1e-4 / len(few.labels_N),
        max_iter=spec.max_iter,
        precision=spec.precision,
    )
    return recalls(model.predict(parts["test"].x_NF), test.labels_N).accuracy
