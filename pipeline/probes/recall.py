"""How much of each class a classifier finds.

Shape letters: N rows.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Recalls:
    """The share of rows that were named rightly, of all and of each class by its number."""

    accuracy: float
    per_class: dict[str, float]


def recalls(predicted_N: np.ndarray, labels_N: np.ndarray) -> Recalls:
    """Compare predicted classes with the labels."""
    right_N = predicted_N == labels_N
    per_class = {str(c): float(right_N[labels_N == c].mean()) for c in np.unique(labels_N)}
    return Recalls(float(right_N.mean()), per_class)
