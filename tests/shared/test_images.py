"""The image encoder: the first blocks of a timm ViT, started from a whole one's weights."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.checkpoints import read_tensors
from pipeline.errors import StudentError
from pipeline.fitting import fit_backbone
from pipeline.shared.images import build_image_encoder, cut_tensors

PX = 32


def whole(seed: int, name: str = "test_vit") -> torch.nn.Module:
    """Return a whole timm ViT with its classifier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: torch.nn.Module = timm.create_model(name, img_size=PX, num_classes=5).eval()
    return model


def pixels(count: int = 2) -> Tensor:
    return torch.randn(count, 3, PX, PX, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name",
    [
        "test_vit",
        "vit_small_patch14_reg4_dinov2",
        "eva02_tiny_patch14_224",
    ],
)
def test_it_gives_what_the_whole_model_has_after_those_blocks(tmp_path: Path, name: str) -> None:
    model = whole(1, name)
    save_file(model.state_dict(), tmp_path / "whole.safetensors")
    encoder = build_image_encoder(name, 2, input_px=PX).eval()
    tensors = cut_tensors(read_tensors(tmp_path / "whole.safetensors"), 2)
    fit = fit_backbone(tensors, encoder.state_dict(), where="whole")
    encoder.load_state_dict({own: tensors[held] for own, held in fit.names.items()})
    with torch.inference_mode():
        places = encoder.forward_features(pixels())
        (wanted,) = model.forward_intermediates(
            pixels(), indices=[1], norm=False, output_fmt="NLC", intermediates_only=True
        )
        pooled = encoder(pixels())
    torch.testing.assert_close(places[:, encoder.num_prefix_tokens :], wanted, rtol=0, atol=0)
    torch.testing.assert_close(pooled, wanted.mean(dim=1))


def test_a_whole_checkpoint_is_too_large_until_it_is_cut() -> None:
    tensors = whole(1).state_dict()
    own = build_image_encoder("test_vit", 2, input_px=PX).state_dict()
    with pytest.raises(StudentError, match="larger architecture"):
        fit_backbone(tensors, own, where="whole")
    assert not fit_backbone(cut_tensors(tensors, 2), own, where="whole").missing


def test_tensors_are_cut_under_any_prefix_and_what_is_beside_stays() -> None:
    names = [
        "teacher.backbone.cls_token",
        "teacher.backbone.blocks.1.norm1.weight",
        "teacher.backbone.blocks.1.attn.norm.weight",
        "teacher.backbone.blocks.2.norm1.weight",
        "teacher.backbone.blocks.11.mlp.fc1.weight",
        "teacher.backbone.norm.weight",
        "teacher.backbone.fc_norm.bias",
        "teacher.head.norm.weight",
        "decoder_blocks.5.norm1.weight",
        "blocks.2.attn.qkv.weight",
        "norm.bias",
    ]
    kept = cut_tensors({name: torch.zeros(1) for name in names}, 2)
    assert [*kept] == [*names[:3], "teacher.head.norm.weight", "decoder_blocks.5.norm1.weight"]


def test_a_checkpoint_with_too_few_blocks_is_refused() -> None:
    tensors = cut_tensors(whole(1).state_dict(), 1)
    own = build_image_encoder("test_vit", 2, input_px=PX).state_dict()
    with pytest.raises(StudentError, match="lacks"):
        fit_backbone(tensors, own, where="cut")


@pytest.mark.parametrize(
    ("name", "layers", "told"),
    [
        ("resnet18", 1, "no ViT"),
        ("efficientnet_b0", 1, "no ViT"),
        ("test_vit4", 1, "no class token"),
        ("deit_tiny_distilled_patch16_224", 1, "cannot do without its own head"),
        ("test_vit", 99, "has 6 blocks, and image_layers asks for 99: ask for at most 6"),
        ("vit_base_patch16_225", 1, "did you mean 'vit_base_patch16_224'"),
        ("test_vit.in21k", 1, "timm has no weights 'in21k' of test_vit"),
    ],
)
def test_what_is_no_such_encoder_is_refused(name: str, layers: int, told: str) -> None:
    with pytest.raises(StudentError, match=told):
        build_image_encoder(name, layers, input_px=PX)


def test_a_size_that_does_not_work_is_told() -> None:
    with pytest.raises(StudentError, match="does not work at 8 px"):
        build_image_encoder("test_vit", 1, input_px=8)
