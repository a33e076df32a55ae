"""The rows of a split that have a label, ready for a classifier.

Shape letters: N rows, F feature dimension.
"""

from dataclasses import dataclass

import numpy as np
import torch

from pipeline.contracts import Features
from pipeline.errors import ProbeError
from pipeline.probes.choices import Device, Normalise, Part, Precision
from pipeline.runtime import pick_device


@dataclass(frozen=True)
class Labelled:
    """Rows with a label: x_NF, float64 or float32, on the probe's device; labels_N, int64."""

    x_NF: torch.Tensor
    labels_N: np.ndarray

    def at(self, rows: np.ndarray) -> "Labelled":
        """Return some of the rows, in this order."""
        chosen = torch.from_numpy(rows).to(self.x_NF.device)
        return Labelled(self.x_NF[chosen], self.labels_N[rows])

    def counts(self) -> dict[str, int]:
        """Return how many rows each class has, by its number as text."""
        classes, counts = np.unique(self.labels_N, return_counts=True)
        return {str(c): int(count) for c, count in zip(classes, counts, strict=True)}


def joined(one: Labelled, other: Labelled) -> Labelled:
    """Return the rows of both."""
    return Labelled(
        torch.cat([one.x_NF, other.x_NF]), np.concatenate([one.labels_N, other.labels_N])
    )


def labelled(
    features: Features, part: Part, split: str, *, precision: Precision, device: Device
) -> Labelled:
    """Return the labelled rows of one part, float64 unless float32 is all that is asked for.

    Raises ProbeError if there are none, or NaN or Inf among them.
    """
    values_NF = features.features_NF if part == "backbone" else features.embedding_ND
    known = features.labels_N >= 0
    if not known.any():
        raise ProbeError(f"no {split} sample has a label (.cls): the linear probe needs them")
    chosen_NF = values_NF[known]
    if not np.isfinite(chosen_NF).all():
        raise ProbeError(f"the {split} features hold NaN or Inf: training has diverged")
    dtype = torch.float32 if precision == "float32" else torch.float64
    x_NF = torch.from_numpy(chosen_NF).to(device=pick_device(device), dtype=dtype)
    return Labelled(x_NF, features.labels_N[known])


def normalised(parts: dict[str, Labelled], how: Normalise) -> dict[str, Labelled]:
    """Return every split normalised: each row to length 1, or each feature as it is in train.

    standardise: mean 0 and standard deviation 1 over the rows of "train"; a feature that does not
    vary there becomes 0.
    """
    if how == "none":
        return parts
    if how == "l2":
        return {
            split: Labelled(torch.nn.functional.normalize(given.x_NF, dim=1), given.labels_N)
            for split, given in parts.items()
        }
    train_NF = parts["train"].x_NF
    mean_F, spread_F = train_NF.mean(0), train_NF.std(0, correction=0)
    per_F = torch.where(spread_F > 0, 1 / spread_F, 0.0)
    return {
        split: Labelled((given.x_NF - mean_F) * per_F, given.labels_N)
        for split, given in parts.items()
    }
