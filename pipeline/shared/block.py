"""The encoder that images and texts share.

Shape letters: B batch, L places of a sequence, Q places that are asked for, E width, I inner
width, H heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.contracts import Branch

TEXT, IMAGE = 0, 1  # what tells the two apart is at these rows
_STD = 0.02  # of random weights, as ViTs and BERT draw them
_EPSILON = 1e-6
_EVERY, _FIRST = slice(None), slice(0, 1)


class SharedBlock(nn.Module):
    """One pre-norm Transformer block, as ViTs have, each branch scaled (LayerScale).

    Of queries, keys and values the keys have no bias: no softmax would see it.
    """

    def __init__(self, width: int, heads: int, inner: int, layer_scale: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=_EPSILON)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.scale1 = nn.Parameter(torch.full((width,), layer_scale))
        self.norm2 = nn.LayerNorm(width, eps=_EPSILON)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.scale2 = nn.Parameter(torch.full((width,), layer_scale))

    def forward(
        self, x_BLE: Tensor, mask_B11L: Tensor | None, asked: slice = _EVERY
    ) -> tuple[Tensor, Tensor]:
        """Return the block's output [B,Q,E] at the places asked for, and there [B,Q,I] of its MLP.

        The latter is what the MLP has before its activation. Every place asked for takes in all L,
        but for those where the mask is False.
        """
        x_BQE = x_BLE[:, asked] + self.scale1 * self._attend(self.norm1(x_BLE), mask_B11L, asked)
        inner_BQI = self.fc1(self.norm2(x_BQE))
        return x_BQE + self.scale2 * self.fc2(F.gelu(inner_BQI)), inner_BQI

    def _attend(self, x_BLE: Tensor, mask_B11L: Tensor | None, asked: slice) -> Tensor:
        mixed_BHQ = F.scaled_dot_product_attention(
            self._by_head(self.query(x_BLE[:, asked])),
            self._by_head(self.key(x_BLE)),
            self._by_head(self.value(x_BLE)),
            attn_mask=mask_B11L,
        )
        projected_BQE: Tensor = self.proj(mixed_BHQ.transpose(1, 2).flatten(2))
        return projected_BQE

    def _by_head(self, x_BLE: Tensor) -> Tensor:
        return x_BLE.view(*x_BLE.shape[:2], self.heads, -1).transpose(1, 2)


class SharedEncoder(nn.Module):
    """What is behind both encoders: a mark of where a sequence comes from, then blocks."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        inner: int,
        depth: int,
        layer_scale: float,
        token_type_scale: float,
    ) -> None:
        """Draw its weights from torch's generator."""
        super().__init__()
        self.width = width
        self.types_2E = nn.Parameter(torch.empty(2, width))
        self.type_scale = nn.Parameter(torch.full((width,), token_type_scale))
        self.blocks = nn.ModuleList(
            SharedBlock(width, heads, inner, layer_scale) for _ in range(depth)
        )
        nn.init.trunc_normal_(self.types_2E, std=_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                draw(module)

    def no_weight_decay(self) -> set[str]:
        """Name what is an embedding, which no optimiser lets decay."""
        return {"types_2E"}

    def forward(self, x_BLE: Tensor, kind: int, mask_BL: Tensor | None = None) -> Branch:
        """Return what comes out at the first place, where the class token is.

        kind: TEXT or IMAGE. mask_BL: False where there is nothing. Only the first place is asked of
        the last block, since nothing reads the others.
        """
        x_BLE = x_BLE + self.type_scale * self.types_2E[kind]
        mask_B11L = None if mask_BL is None else mask_BL[:, None, None, :]
        *before, last = self.blocks
        for block in before:
            x_BLE, _ = block(x_BLE, mask_B11L)
        output_B1E, inner_B1I = last(x_BLE, mask_B11L, _FIRST)
        return Branch(output_B1E[:, 0].float(), inner_B1I[:, 0].float())


def draw(linear: nn.Linear) -> None:
    """Draw a linear map's weights from torch's generator, as all of the shared part are."""
    nn.init.trunc_normal_(linear.weight, std=_STD)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
