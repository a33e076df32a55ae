"""The model of images and texts, which is trained as a student.

Shape letters: B batch, S side in pixels, P places of an image, L places of a text, F feature
dimension, E width of the space that both share (F and E are one number), D the same E.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.contracts import Branch, StudentOutputs, TokenBatch
from pipeline.errors import StudentError
from pipeline.shared.block import IMAGE, TEXT, SharedEncoder, draw
from pipeline.shared.contract import SharedOptions
from pipeline.shared.images import build_image_encoder
from pipeline.shared.reader import text_reader
from pipeline.shared.texts import TextEncoder, build_text_encoder


class SharedStudent(nn.Module):
    """An image encoder, a text encoder, and the shared encoder that each runs through alone.

    Where the text encoder is of another width, a linear map (`adapter`) leads to the image
    encoder's. Trained on images alone, `text` and `adapter` get no gradient; by labels alone,
    `shared` gets none either.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: Any, text: TextEncoder, adapter: nn.Module, shared: SharedEncoder
    ) -> None:
        super().__init__()
        self.backbone, self.text, self.adapter, self.shared = backbone, text, adapter, shared
        self.num_features = self.width = shared.width
        self.memory_format = torch.contiguous_format  # of the pixels that the backbone gets
        self.started_from: dict[str, Any] | None = None  # the backbone's first weights, if given
        for name in ("mean", "std"):
            levels = torch.tensor(backbone.default_cfg[name])[:, None, None] * 255
            self.register_buffer(name, levels, persistent=False)

    def features(self, views_B3SS: Tensor) -> Tensor:
        """Return float32 [B,F] features of uint8 views: the mean of the image encoder's patches.

        Images are classified by these; the shared encoder has no part in them.
        """
        return self._pooled(self._places(views_B3SS))

    def embed_texts(self, tokens: TokenBatch) -> Tensor:
        """Return float32 [B,E] embeddings of texts, normalised."""
        return F.normalize(self._read(tokens).output_BE, dim=-1)

    def forward(self, views_B3SS: Tensor, tokens: TokenBatch | None = None) -> StudentOutputs:
        """Embed uint8 [B,3,S,S] views, and texts if there are any; neither sees the other."""
        places_BPE = self._places(views_B3SS)
        image = self.shared(places_BPE, IMAGE)
        return StudentOutputs(
            features_BF=self._pooled(places_BPE),
            embedding_BD=F.normalize(image.output_BE, dim=-1),
            image=image,
            text=None if tokens is None else self._read(tokens),
        )

    def _places(self, views_B3SS: Tensor) -> Tensor:
        pixels_B3SS = (views_B3SS - self.mean) / self.std
        pixels_B3SS = pixels_B3SS.contiguous(memory_format=self.memory_format)
        places_BPE: Tensor = self.backbone.forward_features(pixels_B3SS)
        return places_BPE

    def _pooled(self, places_BPE: Tensor) -> Tensor:
        return places_BPE[:, self.backbone.num_prefix_tokens :].float().mean(dim=1)

    def _read(self, tokens: TokenBatch) -> Branch:
        hidden_BLT = self.text(tokens.tokens_BL, tokens.mask_BL)
        branch: Branch = self.shared(self.adapter(hidden_BLT), TEXT, tokens.mask_BL)
        return branch


def build_shared(
    spec: SharedOptions, *, input_px: int, seed: int, text_folder: Path | None = None
) -> SharedStudent:
    """Build a model of images and texts; raises StudentError or LibraryError.

    The shared part, the image encoder and a text encoder from scratch are drawn from `seed` alone;
    `spec.text_init: pretrained` gives the text encoder its own weights. input_px: side of the views
    that it will see. text_folder: where `TextReader.save` wrote; the text encoder is then built
    from that, untrained, for weights that are loaded after.
    """
    files = text_reader(spec, text_folder).files  # which must fit each other
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone: Any = build_image_encoder(spec.image, spec.image_layers, input_px=input_px)
        shared = _shared_encoder(spec, backbone)
        adapter = _adapter(files.width, shared.width)
        # Last, so that nothing else depends on what it draws.
        text = build_text_encoder(files, "scratch" if text_folder else spec.text_init)
        return SharedStudent(backbone, text, adapter, shared)


def _shared_encoder(spec: SharedOptions, backbone: Any) -> SharedEncoder:
    width = int(backbone.embed_dim)
    heads = spec.heads or int(backbone.blocks[0].attn.num_heads)
    if width % heads:
        raise StudentError(
            f"the shared encoder's heads are {heads}, which do not divide {spec.image}'s width, "
            f"{width}: choose another number of heads"
        )
    return SharedEncoder(
        width,
        heads=heads,
        inner=max(1, round(width * spec.mlp_ratio)),
        depth=spec.depth,
        layer_scale=spec.layer_scale,
        token_type_scale=spec.token_type_scale,
    )


def _adapter(text_width: int, width: int) -> nn.Module:
    if text_width == width:
        return nn.Identity()
    linear = nn.Linear(text_width, width)
    draw(linear)
    return linear
