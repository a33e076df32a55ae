"""A small stem keeps what few pixels there are, in every family that has a stride to lose."""

import pytest
import timm
import torch
from torch import nn

from pipeline.errors import StudentError
from pipeline.stems import shrink_stem

PX = 32
# Each with how many times larger its last map is, a side.
FAMILIES = {
    "resnet18": 4,
    "test_resnet": 4,  # three convolutions deep, the first of them strided
    "resnet18d": 4,
    "seresnet18": 4,
    "resnetv2_18": 4,
    "densenet121": 4,
    "mobilenetv3_small_050": 2,  # no max-pool
    "tf_efficientnet_b0": 2,  # padded as TensorFlow does
    "regnetx_002": 2,
    "repvgg_a0": 2,  # several first convolutions side by side
}


def backbone(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=0)


def side(model: nn.Module, px: int = PX) -> int:
    with torch.inference_mode():
        return int(model.eval().forward_features(torch.zeros(1, 3, px, px)).shape[-1])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_map_is_larger(name: str) -> None:
    model = backbone(name)
    before = side(model)
    shrink_stem(model, name)
    assert side(model) == before * FAMILIES[name]


def test_a_resnets_stem_is_the_one_of_simclr_on_cifar() -> None:
    model = backbone("resnet18")
    shrink_stem(model, "resnet18")
    conv = model.conv1
    assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
    assert conv.weight.shape == (64, 3, 3, 3)
    assert conv.bias is None
    assert isinstance(model.maxpool, nn.Identity)
    with torch.inference_mode():
        assert model.conv1(torch.zeros(1, 3, PX, PX)).shape[-1] == PX


def test_new_weights_are_as_wide_as_timms_own() -> None:
    model = backbone("resnet18")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shrink_stem(model, "resnet18")
    expected = (2 / (64 * 3 * 3)) ** 0.5  # kaiming, fan out
    assert model.conv1.weight.std().item() == pytest.approx(expected, rel=0.1)


def test_a_convolution_of_three_by_three_keeps_its_weights() -> None:
    model = backbone("mobilenetv3_small_050")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shrink_stem(model, "mobilenetv3_small_050")
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("test_vit", "patches of 16 px"),
        ("test_convnext", "patches of 4 px"),
        ("vgg11", "no stride already"),
    ],
)
def test_a_family_without_a_stride_to_lose_is_an_error(name: str, reason: str) -> None:
    with pytest.raises(StudentError, match=rf"{name} has no small stem.*{reason}"):
        shrink_stem(backbone(name), name)


def test_a_network_that_names_no_first_convolution_is_an_error() -> None:
    with pytest.raises(StudentError, match="does not say which"):
        shrink_stem(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2)), "mine")
