"""A backbone's weights are found in every public form of checkpoint, and never half of them."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from pipeline.errors import StudentError
from pipeline.fitting import Fit, fit_backbone
from tests.backbones import head, prefixed, small_resnet, torchvision_resnet

State = dict[str, Tensor]


def fit(tensors: State, backbone: nn.Module | None = None, **options: Any) -> Fit:
    own = (backbone or small_resnet(seed=1)).state_dict()
    return fit_backbone(tensors, own, where="file.pth", **options)


def numbered(state: State, children: str) -> State:
    """Rename as nn.Sequential does; children: the names that stand in it, in order."""
    places = {name: str(place) for place, name in enumerate(children.split())}
    split = {name: name.partition(".") for name in state}
    return {f"{places[first]}.{rest}": state[name] for name, (first, _, rest) in split.items()}


STAGES = "layer1 layer2 layer3 layer4"
# What each public form makes of a backbone's state, and the prefix that must be found.
FORMS: dict[str, tuple[str, Callable[[State], State]]] = {
    "torchvision": ("", lambda s: s | prefixed("fc.", {"weight": torch.zeros(10, 16)})),
    "timm ema": (
        "state_dict_ema.",
        lambda s: prefixed("state_dict.", noise(s)) | prefixed("state_dict_ema.", s),
    ),
    "moco v2": (
        "state_dict.module.encoder_q.",
        lambda s: (
            prefixed("state_dict.module.encoder_k.", noise(s))
            | prefixed("state_dict.module.encoder_q.", s)
            | prefixed("state_dict.module.encoder_q.fc.", head())
            | {"state_dict.module.queue": torch.zeros(8, 4)}
        ),
    ),
    "moco v3": (
        "state_dict.module.base_encoder.",
        lambda s: (
            prefixed("state_dict.module.base_encoder.", s)
            | prefixed("state_dict.module.momentum_encoder.", noise(s))
            | prefixed("state_dict.module.predictor.", head())
        ),
    ),
    "swav": (
        "module.",
        lambda s: (
            prefixed("module.", s)
            | prefixed("module.projection_head.", head())
            | {"module.prototypes.weight": torch.zeros(30, 8)}
        ),
    ),
    "dino": (
        "teacher.backbone.",
        lambda s: (
            prefixed("student.module.backbone.", noise(s))
            | prefixed("student.module.head.mlp.", head())
            | prefixed("teacher.backbone.", s)
            | prefixed("teacher.head.mlp.", head())
            | {"dino_loss.center": torch.zeros(1, 8)}
        ),
    ),
    "dino, student alone": (
        "student.module.backbone.",
        lambda s: prefixed("student.module.backbone.", s),
    ),
    "simclr, sthalles": (
        "state_dict.backbone.",
        lambda s: prefixed("state_dict.backbone.", s | prefixed("fc.", head())),
    ),
    "simclr, spijkervet": (
        "module.encoder.",
        lambda s: prefixed("module.encoder.", s) | prefixed("module.projector.", head()),
    ),
    "simclr, atanov": (
        "state_dict.convnet.",
        lambda s: prefixed("state_dict.convnet.", s) | prefixed("state_dict.projection.", head()),
    ),
    "simclr, leftthomas": (
        "f.",
        lambda s: prefixed("f.", numbered(s, f"conv1 bn1 relu {STAGES}")) | prefixed("g.", head()),
    ),
    "supcontrast": (
        "model.encoder.module.",
        lambda s: (
            prefixed(
                "model.encoder.module.",
                {name.replace("downsample", "shortcut"): value for name, value in s.items()},
            )
            | prefixed("model.head.", head())
        ),
    ),
    "vissl": (
        "classy_state_dict.base_model.model.trunk._feature_blocks.",
        lambda s: (
            prefixed("classy_state_dict.base_model.model.trunk._feature_blocks.", s)
            | prefixed("classy_state_dict.base_model.model.heads.0.clf.", head())
        ),
    ),
    "byol, lucidrains": (
        "net.",
        lambda s: (
            prefixed("net.", s)
            | prefixed("online_encoder.net.", s)
            | prefixed("online_encoder.projector.", head())
            | prefixed("target_encoder.net.", noise(s))
        ),
    ),
    "byol, yaox12": (
        "model.module.online_network.encoder.",
        lambda s: (
            prefixed("model.module.target_network.encoder.", noise(s))
            | prefixed("model.module.online_network.encoder.", s)
            | prefixed("model.module.predictor.", head())
        ),
    ),
    "byol, sthalles": (
        "online_network_state_dict.encoder.",
        lambda s: (
            prefixed(
                "online_network_state_dict.encoder.",
                numbered(s, f"conv1 bn1 relu maxpool {STAGES} avgpool"),
            )
            | prefixed(
                "target_network_state_dict.encoder.",
                noise(numbered(s, f"conv1 bn1 relu maxpool {STAGES} avgpool")),
            )
            | prefixed("online_network_state_dict.projetion.net.", head())
        ),
    ),
    "lightly": (
        "state_dict.backbone.",
        lambda s: (
            prefixed(
                "state_dict.backbone.", numbered(s, f"conv1 bn1 relu maxpool {STAGES} avgpool")
            )
            | prefixed("state_dict.projection_head.layers.", head())
        ),
    ),
    "lightly's own resnet": (
        "state_dict.backbone.",
        lambda s: prefixed("state_dict.backbone.", numbered(s, f"conv1 bn1 {STAGES}")),
    ),
    "solo-learn": (
        "state_dict.backbone.",
        lambda s: (
            prefixed("state_dict.momentum_backbone.", noise(s))
            | prefixed("state_dict.backbone.", s)
            | prefixed("state_dict.classifier.", {"weight": torch.zeros(10, 16)})
        ),
    ),
    "compiled": ("_orig_mod.", lambda s: prefixed("_orig_mod.", s)),
}


def noise(state: State) -> State:
    """Another network of the same names and shapes."""
    return {name: value + 1 for name, value in state.items()}


@pytest.mark.parametrize("form", FORMS)
def test_every_tensor_of_the_backbone_is_found_in(form: str) -> None:
    state = dict(small_resnet().state_dict())
    prefix, make = FORMS[form]
    tensors = make(state)
    found = fit(tensors)
    assert found.prefix == prefix
    assert found.names.keys() == state.keys()
    assert found.missing == ()
    for name, held in found.names.items():
        assert torch.equal(tensors[held], state[name]), name
    assert set(found.left_over) == tensors.keys() - set(found.names.values())


def test_torchvisions_resnet_gives_timms_the_same_features() -> None:
    """The two libraries' names are equal; the oracle is torchvision's own forward pass."""
    theirs = torchvision_resnet()
    ours = timm.create_model("resnet18", num_classes=0)
    tensors = dict(theirs.state_dict())
    found = fit(tensors, ours)
    ours.load_state_dict({name: tensors[held] for name, held in found.names.items()})
    theirs.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))
    assert found.left_over == ("fc.weight", "fc.bias")


def test_lightlys_numbers_of_torchvisions_children_give_the_same_features() -> None:
    theirs = torchvision_resnet()
    backbone = nn.Sequential(*list(theirs.children())[:-1])
    tensors = prefixed("backbone.", dict(backbone.state_dict()))
    ours = timm.create_model("resnet18", num_classes=0)
    names = fit(tensors, ours).names
    ours.load_state_dict({name: tensors[held] for name, held in names.items()})
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(images), backbone(images).flatten(1))


def test_dinos_vision_transformer_has_timms_names() -> None:
    backbone = timm.create_model("test_vit", num_classes=0)
    state = dict(backbone.state_dict())
    tensors = prefixed("teacher.backbone.", state) | prefixed("teacher.head.mlp.", head())
    assert fit(tensors, backbone).names.keys() == state.keys()


def test_a_classifier_within_a_part_that_is_kept_is_left_over() -> None:
    """ConvNeXt's head keeps its norm without a classifier: head.fc is no further layer."""
    whole = timm.create_model("test_convnext", num_classes=10)
    backbone = timm.create_model("test_convnext", num_classes=0)
    tensors = dict(whole.state_dict())
    assert "head.norm.weight" in backbone.state_dict()
    found = fit(tensors, backbone, heads=("head.fc",))
    assert found.left_over == ("head.fc.weight", "head.fc.bias")


def test_counters_of_batch_statistics_may_be_missing() -> None:
    """Files from before torch 0.4.1 have none, and evaluation does not look at them."""
    state = small_resnet().state_dict()
    older = {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}
    found = fit(older)
    assert set(found.missing) == state.keys() - older.keys()
    assert found.names.keys() == older.keys()


def test_half_precision_and_integers_are_no_hindrance() -> None:
    state = small_resnet().state_dict()
    half = {n: v.half() if v.is_floating_point() else v for n, v in state.items()}
    assert fit(half).names.keys() == state.keys()


class TestRefuses:
    def refuses(self, tensors: State, match: str, backbone: nn.Module | None = None) -> None:
        with pytest.raises(StudentError, match=match) as caught:
            fit(tensors, backbone)
        assert "file.pth" in str(caught.value)

    def test_a_foreign_architecture(self) -> None:
        tensors = timm.create_model("test_vit").state_dict()
        self.refuses(tensors, "no weights of this backbone: expected names such as conv1.weight")

    def test_another_family_that_shares_a_name_or_two(self) -> None:
        tensors = timm.create_model("test_efficientnet").state_dict()
        self.refuses(tensors, r"other shapes|lacks \d+ of the backbone's \d+")

    def test_no_tensor_at_all(self) -> None:
        self.refuses({}, "no weights of this backbone")

    def test_a_smaller_network(self) -> None:
        whole = small_resnet(layers=(1, 1, 2, 1))
        self.refuses(
            dict(small_resnet().state_dict()),
            r"lacks 10 of the backbone's \d+ tensors \(layer3\.1\.conv1\.weight, .*, \.\.\.\)",
            whole,
        )

    def test_a_larger_network_of_the_same_names(self) -> None:
        """ResNet-34 has every name and shape of ResNet-18: half of it is no ResNet-18."""
        tensors = dict(small_resnet(layers=(1, 1, 2, 1)).state_dict())
        self.refuses(tensors, r"10 tensors more than the backbone \(layer3\.1\.conv1\.weight")

    def test_other_widths(self) -> None:
        wide = torchvision.models.ResNet(
            torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], width_per_group=64
        )
        self.refuses(dict(wide.state_dict()), r"other shapes .* expected \(8, ")

    @pytest.mark.parametrize(("held", "said"), [(3, "small"), (7, "imagenet")])
    def test_another_stem(self, held: int, said: str) -> None:
        backbone, tensors = small_resnet(), dict(small_resnet().state_dict())
        small = torch.zeros(64, 3, 3, 3)
        if held == 3:
            tensors["conv1.weight"] = small
        else:
            backbone.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.refuses(
            tensors,
            rf"{said} stem: its conv1\.weight is {held}x{held}.*set student\.stem={said}",
            backbone,
        )

    def test_two_networks_that_fit_equally_well(self) -> None:
        state = dict(small_resnet().state_dict())
        tensors = prefixed("left.", state) | prefixed("right.", noise(state))
        self.refuses(tensors, r"two networks that fit \('left\.', 'right\.'\)")

    def test_values_that_are_not_finite(self) -> None:
        tensors = dict(small_resnet().state_dict())
        tensors["layer2.0.conv1.weight"] = tensors["layer2.0.conv1.weight"] * torch.nan
        self.refuses(tensors, r"not finite \(layer2\.0\.conv1\.weight\)")


def test_a_missing_tensor_is_named() -> None:
    tensors = dict(small_resnet().state_dict())
    del tensors["layer4.0.bn2.running_var"]
    with pytest.raises(StudentError, match=re.escape("(layer4.0.bn2.running_var)")):
        fit(tensors)
