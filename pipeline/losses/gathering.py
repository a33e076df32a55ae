"""Brings the rows of all ranks together, so that gradients find their way back.

Shape letters: B rows of this rank, G rows of all ranks, E columns.
"""

from typing import Any

import torch
from torch import Tensor, distributed


def gathered(own_BE: Tensor) -> tuple[Tensor, int]:
    """Return the rows of all ranks, [G,E] or [G], and at which of them this rank's begin.

    Every rank calls it together, with as many rows. The gradient of a row is the sum of what all
    ranks' losses say of it; averaged over ranks, as DDP does, gradients are those of the mean of
    all ranks' losses. A process without others gets its rows back.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return own_BE, 0
    all_GE: Tensor = _Gathered.apply(own_BE)
    return all_GE, distributed.get_rank() * len(own_BE)


class _Gathered(torch.autograd.Function):
    """All ranks' rows; on the way back, what all ranks say of this one's, added up."""

    # torch.distributed.nn, which had such a function, is deprecated; its heir is private.
    @staticmethod
    def forward(ctx: Any, own_BE: Tensor) -> Tensor:
        ctx.size = len(own_BE)
        parts = [torch.empty_like(own_BE) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, own_BE.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient_GE,) = gradients
        total_GE = gradient_GE.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total_GE)
        first = distributed.get_rank() * int(ctx.size)
        return total_GE[first : first + int(ctx.size)]
