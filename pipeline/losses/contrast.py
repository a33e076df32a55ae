"""Finding one's own among many: a softmax over similarities on a learnable scale.

Shape letters: B batch, N rows compared with, D dimension.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.losses.similarity import dots, wide

# CLIP's (Radford et al. 2021, section 2.5): begins at a tau of 0.07, never scales by more than 100.
FIRST, MOST = 1 / 0.07, 100.0


class Scales(nn.Module):
    """Factors of similarities, 1 / tau, that are learned as logarithms and stay in [1, 100]."""

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.logs = nn.Parameter(torch.full((count,), math.log(FIRST)))

    def forward(self) -> Tensor:
        """Return the factors, [count]."""
        # Not in the graph, where one beyond its bounds would have no gradient back.
        with torch.no_grad():
            self.logs.clamp_(0, math.log(MOST))
        return self.logs.exp()


def normalised(x_BD: Tensor) -> Tensor:
    """Return rows of norm 1, float32; float64 stays."""
    return F.normalize(wide(x_BD), dim=1)


def twins(rows_B: Tensor, rows_N: Tensor, own_B: Tensor) -> Tensor:
    """Say which are of the same row of the split, but not one's own: bool [B,N].

    own_B: where among the N a sample's own is.
    """
    same_BN = rows_B[:, None] == rows_N[None, :]
    return same_BN.scatter(1, own_B[:, None], False)


def contrast(
    x_BD: Tensor, y_ND: Tensor, scale: Tensor, own_B: Tensor, left_out_BN: Tensor | None
) -> Tensor:
    """Return -log softmax_j(scale * x . y_j) at one's own: [B]; what is left out is no y_j."""
    logits_BN = dots(scale * wide(x_BD), y_ND)  # scaled before, which keeps a [B,N] less for later
    if left_out_BN is not None:
        logits_BN = logits_BN.masked_fill(left_out_BN, -torch.inf)
    return F.cross_entropy(logits_BN, own_B, reduction="none")
