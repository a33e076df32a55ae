"""The image encoder: the first blocks of a timm ViT.

Shape letters: B batch, S side in pixels, P places (a class token first, then what else the
model puts before its patches, then the patches), E width.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbones import timm_model
from pipeline.errors import StudentError
from pipeline.options import nearest

_BLOCK = re.compile(r"((?:.*\.)?)blocks\.(\d+)\.")


def build_image_encoder(name: str, layers: int, *, input_px: int) -> nn.Module:
    """Return the first `layers` blocks of a timm ViT, drawn from torch's generator.

    It gives float [B,E] for pixels, the mean of the patches' places; its `forward_features` gives
    float [B,P,E], the last block's output without a norm. Raises StudentError for a model that is
    no ViT, has no class token or too few blocks, or does not work at this size.
    """
    _check_name(name)
    try:
        model = _vit(name, input_px)
    except Exception as error:  # an architecture refuses a size in its own way
        raise _unfit(name, input_px, error) from None
    _check(model, name, layers)
    model.blocks = model.blocks[:layers]
    for norm in {"norm", "fc_norm"} & dict(model.named_children()).keys():
        setattr(model, norm, nn.Identity())
    try:
        model.reset_classifier(0, "avg")
    except Exception as error:  # each refuses in its own way
        raise StudentError(
            f"image encoder {name} cannot do without its own head ({error}): choose a plain ViT, "
            "as vit_base_patch16_224"
        ) from None
    try:
        _try(model, input_px)
    except Exception as error:
        raise _unfit(name, input_px, error) from None
    encoder: nn.Module = model
    return encoder


def cut_tensors(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Return a ViT's tensors without the blocks from `layers` on, and without its last norm.

    Under any prefix: where `x.blocks.0.` is, `x.blocks.6.` and `x.norm.` are dropped. What else the
    checkpoint holds stays.
    """
    found = {name: _BLOCK.match(name) for name in tensors}
    ends = tuple(
        f"{prefix}{norm}."
        for prefix in {match[1] for match in found.values() if match}
        for norm in ("norm", "fc_norm")
    )
    return {
        name: tensors[name]
        for name, match in found.items()
        if not (int(match[2]) >= layers if match else name.startswith(ends))
    }


def _vit(name: str, input_px: int) -> Any:
    """Build a whole timm model with random weights and no classifier."""
    return timm_model(name, input_px, num_classes=0)


def _check_name(name: str) -> None:
    import timm

    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        hint = nearest(base, timm.list_models("*vit*"))
        close = hint if "did you mean" in hint else "see timm.list_models()"
        raise StudentError(f"no image encoder {base!r} among timm's models: {close}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise StudentError(f"timm has no weights {tag!r} of {base}: {nearest(tag, tags)}")


def _check(model: Any, name: str, layers: int) -> None:
    has_parts = all(hasattr(model, part) for part in ("patch_embed", "blocks", "forward_features"))
    if not has_parts or not isinstance(model.blocks, nn.Sequential | nn.ModuleList):
        raise StudentError(
            f"image encoder {name} is no ViT (a patch_embed, then blocks): choose one, as "
            "vit_base_patch16_224"
        )
    if getattr(model, "cls_token", None) is None or getattr(model, "num_prefix_tokens", 0) < 1:
        raise StudentError(
            f"image encoder {name} has no class token, and its output at that token is the "
            "embedding: choose a ViT that has one, as vit_base_patch16_224"
        )
    if len(model.blocks) < layers:
        raise StudentError(
            f"image encoder {name} has {len(model.blocks)} blocks, and image_layers asks for "
            f"{layers}: ask for at most {len(model.blocks)}"
        )


def _try(model: Any, input_px: int) -> None:
    """Raise ValueError unless the cut model gives a class token and patches."""
    with torch.inference_mode():
        places = model.eval().forward_features(torch.zeros(1, 3, input_px, input_px))
    model.train()
    if places.ndim != 3 or places.shape[1] <= model.num_prefix_tokens:
        raise ValueError(f"expected outputs [B,P,E], found shape {tuple(places.shape)}")


def _unfit(name: str, input_px: int, error: Exception) -> StudentError:
    return StudentError(
        f"image encoder {name} does not work at {input_px} px ({type(error).__name__}: {error}): "
        "choose another student.input_px or another model"
    )
