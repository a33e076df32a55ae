"""The encoder that images and texts share."""

from functools import partial

import pytest
import timm
import torch
from torch import Tensor

from pipeline.shared.block import IMAGE, TEXT, SharedBlock, SharedEncoder

WIDTH, HEADS, INNER = 24, 3, 96


def encoder(depth: int = 1, token_type_scale: float = 1e-5) -> SharedEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = SharedEncoder(
            WIDTH,
            heads=HEADS,
            inner=INNER,
            depth=depth,
            layer_scale=0.2,
            token_type_scale=token_type_scale,
        )
        for parameter in made.blocks.parameters():  # zeros would hide a bias that is left out
            parameter.data += 0.1 * torch.randn_like(parameter)
    return made.eval()


def sequences(count: int = 2, places: int = 5) -> Tensor:
    return torch.randn(count, places, WIDTH, generator=torch.Generator().manual_seed(1))


def timm_block(block: SharedBlock) -> torch.nn.Module:
    """Return timm's own block with the same weights."""
    other = timm.models.vision_transformer.Block(
        WIDTH,
        HEADS,
        qkv_bias=True,
        init_values=0.2,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    )
    ours = block.state_dict()
    parts = [ours["query.weight"], ours["key.weight"], ours["value.weight"]]
    biases = [ours["query.bias"], torch.zeros(WIDTH), ours["value.bias"]]
    names = {"attn.proj": "proj", "norm1": "norm1", "norm2": "norm2"}
    names |= {"mlp.fc1": "fc1", "mlp.fc2": "fc2"}
    state = {"attn.qkv.weight": torch.cat(parts), "attn.qkv.bias": torch.cat(biases)}
    state |= {"ls1.gamma": ours["scale1"], "ls2.gamma": ours["scale2"]}
    for theirs, own in names.items():
        state |= {f"{theirs}.{kind}": ours[f"{own}.{kind}"] for kind in ("weight", "bias")}
    other.load_state_dict(state)
    return other.eval()


@pytest.mark.parametrize("depth", [1, 2])
def test_it_computes_what_timms_blocks_do(depth: int) -> None:
    shared, x_BLE = encoder(depth), sequences()
    x = x_BLE + shared.type_scale * shared.types_2E[IMAGE]
    inner = []
    for block in shared.blocks:
        other = timm_block(block)
        other.mlp.fc1.register_forward_hook(lambda *call: inner.append(call[2]))
        x = other(x)
    found = shared(x_BLE, IMAGE)
    torch.testing.assert_close(found.output_BE, x[:, 0])
    torch.testing.assert_close(found.inner_BI, inner[-1][:, 0])
    assert (found.output_BE.shape, found.inner_BI.shape) == ((2, WIDTH), (2, INNER))


@pytest.mark.parametrize("depth", [1, 2])
def test_masked_places_do_not_show(depth: int) -> None:
    shared, x_BLE = encoder(depth), sequences()
    mask_BL = torch.tensor([[True, True, True, False, False]]).expand(2, -1)
    found = shared(x_BLE, TEXT, mask_BL)
    other_BLE = torch.where(mask_BL[..., None], x_BLE, torch.tensor(9.0))
    assert shared(other_BLE, TEXT, mask_BL).output_BE.equal(found.output_BE)
    alone = shared(x_BLE[:, :3], TEXT)
    torch.testing.assert_close(found.output_BE, alone.output_BE, rtol=0, atol=2e-6)
    assert not found.output_BE.allclose(shared(x_BLE, TEXT).output_BE)


def test_the_kind_is_added_scaled() -> None:
    shared, x_BLE = encoder(token_type_scale=0.5), sequences()
    shifted_BLE = x_BLE + 0.5 * (shared.types_2E[IMAGE] - shared.types_2E[TEXT])
    image, text = shared(x_BLE, IMAGE).output_BE, shared(x_BLE, TEXT).output_BE
    torch.testing.assert_close(shared(shifted_BLE, TEXT).output_BE, image)
    assert not image.allclose(text)
    faint = encoder()
    gap = faint(x_BLE, IMAGE).output_BE - faint(x_BLE, TEXT).output_BE
    assert 0 < gap.abs().max() < 1e-4


def test_its_weights_start_as_the_document_says() -> None:
    torch.manual_seed(0)
    shared = SharedEncoder(
        WIDTH, heads=HEADS, inner=INNER, depth=1, layer_scale=0.2, token_type_scale=1e-5
    )
    (block,) = shared.blocks
    assert isinstance(block, SharedBlock)
    assert block.key.bias is None
    assert block.norm1.eps == block.norm2.eps == 1e-6
    torch.testing.assert_close(block.scale1, torch.full((WIDTH,), 0.2))
    torch.testing.assert_close(block.scale2, torch.full((WIDTH,), 0.2))
    torch.testing.assert_close(shared.type_scale, torch.full((WIDTH,), 1e-5))
    assert 0.015 < block.fc1.weight.std() < 0.025
    assert not block.fc1.bias.any()
