"""Makes the stem of a backbone small, for images whose few pixels a stride would lose.

SimCLR's own change for CIFAR-10 (Chen et al. 2020, appendix B.9): a first convolution of 3 x 3 and
stride 1, no first max-pool.
"""

import torch
from torch import nn

from pipeline.errors import StudentError

# Of timm's ResNets, of its ResNetV2s and ByobNets, of its DenseNets.
_POOLS = ("maxpool", "stem.pool", "features.pool0")


def shrink_stem(backbone: nn.Module, name: str) -> None:
    """Give a timm backbone a first convolution of at most 3 x 3 and stride 1, and no max-pool.

    Where a 7 x 7 convolution becomes one of 3 x 3, its weights are drawn from torch's global
    generator. Raises StudentError for a backbone that has no stride there, or patches.
    """
    convs = _first_convs(backbone, name)
    kernel = max(max(conv.kernel_size) for conv in convs)
    stride = max(max(conv.stride) for conv in convs)
    if stride == 1:
        raise _senseless(name, "its first convolution has no stride already")
    if kernel <= stride:
        raise _senseless(name, f"it cuts its input into patches of {kernel} px")
    for conv in convs:
        _relax(conv)
    for pool in _POOLS:
        _drop(backbone, pool)


def _first_convs(backbone: nn.Module, name: str) -> list[nn.Conv2d]:
    """Return what timm calls the first convolution; a RepVGG has several side by side."""
    config = getattr(backbone, "default_cfg", None) or {}
    paths = config.get("first_conv") or ()
    found = []
    for path in (paths,) if isinstance(paths, str) else paths:
        modules = backbone.get_submodule(path).modules()
        found += [module for module in modules if isinstance(module, nn.Conv2d)][:1]
    if not found:
        raise _senseless(name, "it does not say which is its first convolution")
    return found


def _relax(conv: nn.Conv2d) -> None:
    """Change a convolution in place: whatever its class is, it computes what it did."""
    conv.stride = (1, 1)
    if max(conv.kernel_size) > 3:
        conv.kernel_size = (3, 3)
        conv.padding = (1, 1)
        conv.weight = nn.Parameter(torch.empty(*conv.weight.shape[:2], 3, 3))
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def _drop(backbone: nn.Module, path: str) -> None:
    parent, _, name = path.rpartition(".")
    try:
        owner = backbone.get_submodule(parent)
        _ = owner.get_submodule(name)
    except AttributeError:
        return
    setattr(owner, name, nn.Identity())


def _senseless(name: str, reason: str) -> StudentError:
    return StudentError(
        f"student {name} has no small stem ({reason}): leave student.stem at imagenet, or choose "
        "another model"
    )
