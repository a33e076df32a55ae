"""Similarities in float32, whatever autocast is on.

Logits reach 1 / tau, 100 for CLIP: bfloat16 keeps 2 to 3 digits of them, and a softmax over them is
another one. Shape letters: B batch, N rows compared with, D dimension.
"""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """Return `x` in float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def dots(x_BD: Tensor, y_ND: Tensor) -> Tensor:
    """Return x . y of every pair, float32: [B,N]."""
    with torch.autocast(x_BD.device.type, enabled=False):
        return wide(x_BD) @ wide(y_ND).T


def logits(x_BD: Tensor, constant_ND: Tensor, tau: float) -> Tensor:
    """Return x . y / tau of every pair, float32: [B,N]; the gradient reaches x alone."""
    return dots(x_BD, constant_ND.detach()) / tau
