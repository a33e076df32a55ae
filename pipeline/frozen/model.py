"""The model of images and texts that is trained on what two frozen encoders said of them.

Shape letters: B batch, D image feature dimension, T text feature dimension, E width of the space
of both, I inner width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.contracts import Branch
from pipeline.shared.block import draw


class Side(nn.Module):
    """Layer norm and a linear map of one kind of features into the space of both."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        # A vector's length is lost here, so features may as well come normalised.
        self.norm, self.linear = nn.LayerNorm(dim), nn.Linear(dim, width)

    def forward(self, features_BD: Tensor) -> Tensor:
        """Return float32 [B,E]."""
        mapped_BE: Tensor = self.linear(self.norm(features_BD))
        return mapped_BE


class SharedMlp(nn.Module):
    """What images and texts share: a pre-norm MLP beside the identity.

    The second document's first stage shares an MLP on the class token too, of other layers.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x_BE: Tensor) -> Branch:
        """Return its output [B,E], not normalised, and [B,I] before the activation."""
        inner_BI = self.fc1(self.norm(x_BE))
        return Branch(x_BE + self.fc2(F.gelu(inner_BI)), inner_BI)


class FrozenPair(nn.Module):
    """Frozen features of images and texts in, one space out."""

    def __init__(self, image_dim: int, text_dim: int, width: int, inner: int) -> None:
        """Draw all weights from torch's generator."""
        super().__init__()
        self.image, self.text = Side(image_dim, width), Side(text_dim, width)
        self.shared = SharedMlp(width, inner)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                draw(module)

    def forward(self, image_BD: Tensor, text_BT: Tensor) -> tuple[Branch, Branch]:
        """Return what it says of images and of their texts."""
        return self.shared(self.image(image_BD)), self.shared(self.text(text_BT))

    @torch.inference_mode()
    def embed_images(self, image_BD: Tensor) -> Tensor:
        """Return float32 [B,E], normalised."""
        return F.normalize(self.shared(self.image(image_BD)).output_BE, dim=1)

    @torch.inference_mode()
    def embed_texts(self, text_BT: Tensor) -> Tensor:
        """Return float32 [B,E], normalised."""
        return F.normalize(self.shared(self.text(text_BT)).output_BE, dim=1)
