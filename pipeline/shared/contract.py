"""What a model of images and texts is made of."""

from typing import Literal

from pipeline.options import options

Init = Literal["pretrained", "scratch"]


@options
class SharedOptions:
    """Which encoders, how much of them, and the encoder that both share.

    The document takes the first 6 blocks of a self-supervised ViT-B/16, the first 6 layers of
    bert-base-uncased, and one block behind them.
    """

    image: str = "vit_base_patch16_224"  # a timm ViT with a class token; also name.tag
    image_layers: int = 6  # its first blocks; the rest, and its last norm, are dropped
    text: str = "bert-base-uncased"  # a BERT, RoBERTa or DistilBERT: the hub's name, or a folder
    text_layers: int = 6
    text_init: Init = "pretrained"  # scratch: random weights, of the text encoder alone
    max_tokens: int = 64  # of a text, its two marks included; longer ones are cut
    heads: int | None = None  # of the shared encoder; by default as many as the image encoder has
    mlp_ratio: float = 4.0  # its inner width, in widths
    layer_scale: float = 0.2  # what its branches are scaled with at first
    token_type_scale: float = 1e-5  # and what tells image from text
    depth: int = 1  # its blocks

    def __post_init__(self) -> None:
        for name in ("image", "text"):
            if not getattr(self, name):
                raise ValueError(f"{name} is the name of an encoder, not empty")
        for name, least in {
            "image_layers": 1,
            "text_layers": 1,
            "max_tokens": 3,
            "depth": 1,
        }.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is at least {least}, not {getattr(self, name)}")
        if self.heads is not None and self.heads < 1:
            raise ValueError(f"heads is at least 1, not {self.heads}")
        for name in ("mlp_ratio", "layer_scale", "token_type_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is above 0, not {getattr(self, name)}")
