"""Backbones with random weights, small enough to be saved in every form that a test needs."""

import torch
import torchvision
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn


def small_resnet(seed: int = 0, *, layers: tuple[int, ...] = (1, 1, 1, 1)) -> nn.Module:
    """Return timm's plain ResNet with a 7 x 7 stem and few channels: the names of resnet18."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNet(BasicBlock, layers, num_classes=0, channels=(8, 8, 16, 16))
        return with_statistics(model)


def torchvision_resnet(seed: int = 0) -> nn.Module:
    """Return torchvision's own network of the same shapes, with its classifier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block = torchvision.models.resnet.BasicBlock
        return with_statistics(torchvision.models.ResNet(block, [2, 2, 2, 2], num_classes=10))


def with_statistics(model: nn.Module) -> nn.Module:
    """Fill the batch statistics, so that a buffer that is not loaded shows."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
        else:
            buffer.fill_(7)
    return model.eval()


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put a prefix before every name."""
    return {prefix + name: value for name, value in state.items()}


def head(inputs: int = 16, seed: int = 9) -> dict[str, Tensor]:
    """Return the state of a projection head, as an nn.Sequential numbers it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, 12), nn.ReLU(), nn.Linear(12, 8)).state_dict()
