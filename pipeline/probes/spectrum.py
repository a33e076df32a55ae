"""Where features vary, and how much: what a solver needs to take steps of the right length.

Shape letters: N rows, F feature dimension, R directions (the smaller of N and F).
"""

from dataclasses import dataclass

import torch

_ROWS_PER_FEATURE = 8  # enough to know a direction's spread: it steers steps, no result


@dataclass(frozen=True)
class Spectrum:
    """The principal directions of features, float64: mean_F, variances_R, directions_FR."""

    mean_F: torch.Tensor
    variances_R: torch.Tensor
    directions_FR: torch.Tensor


def spectrum(x_NF: torch.Tensor) -> Spectrum:
    """Return the principal directions of evenly spaced rows, of all if they are few.

    With fewer rows than features the directions span the centred rows and no more; a penalised
    linear classifier's weights lie in that span.
    """
    count, dim = x_NF.shape
    step = max(1, count // (_ROWS_PER_FEATURE * dim))
    chosen_NF = x_NF[::step].double()
    mean_F = chosen_NF.mean(0)
    centred_NF = chosen_NF - mean_F
    if count < dim:
        _, spread_R, directions_RF = torch.linalg.svd(centred_NF, full_matrices=False)
        return Spectrum(mean_F, spread_R**2 / count, directions_RF.T)
    covariance_FF = centred_NF.T @ centred_NF / len(centred_NF)
    variances_R, directions_FR = torch.linalg.eigh(covariance_FF)
    return Spectrum(mean_F, variances_R.clamp(min=0), directions_FR)
