"""Networks of timm: builds them, and puts timm's weights or a file's into them."""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import StudentError
from pipeline.fitting import fit_backbone
from pipeline.hub import offline_if_unreachable
from pipeline.options import nearest

_log = logging.getLogger(__name__)


def config_of(backbone: nn.Module) -> dict[str, Any]:
    """Return what timm says of a model: architecture, tag, mean, std, classifier."""
    return dict(getattr(backbone, "default_cfg", None) or {})


def timm_model(name: str, input_px: int, **options: Any) -> nn.Module:
    """Build a timm network for views of a side in pixels; its weights are of chance."""
    import timm

    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is not None and config.fixed_input_size:
        options["img_size"] = input_px
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's notes on renamed models
        model: nn.Module = timm.create_model(name, **options)
    return model


def timm_weights(backbone: nn.Module, input_px: int) -> tuple[str, dict[str, Tensor]]:
    """Return the tag's full name and its tensors, classifier included: so timm loads strictly."""
    config = config_of(backbone)
    name = f"{config['architecture']}.{config['tag']}"
    offline_if_unreachable()
    try:
        with torch.random.fork_rng(devices=[]):
            return name, timm_model(name, input_px, pretrained=True).state_dict()
    except Exception as error:  # the hub's, torch's and safetensors' errors share no root
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        raise StudentError(
            f"cannot load timm's weights {name}: {type(error).__name__}: {reason}; they must be in "
            "the hub's local cache or the hub reachable; or name a file: student.init=PATH"
        ) from None


def check_tag(name: str, tag: str) -> None:
    """Raise StudentError unless timm has weights of that tag."""
    import timm

    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")]
    if tag not in tags:
        raise StudentError(f"timm has no weights {tag!r} of {name}: {nearest(tag, tags)}")


def adopt(backbone: nn.Module, tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """Load what a checkpoint holds of a backbone; tell what was used and what was not."""
    heads = config_of(backbone).get("classifier") or ()
    fit = fit_backbone(
        tensors,
        backbone.state_dict(),
        where=where,
        heads=(heads,) if isinstance(heads, str) else heads,
    )
    weights = {name: tensors[held] for name, held in fit.names.items()}
    backbone.load_state_dict(weights, strict=False)
    _log.info("%s: %d tensors, named %s*, start the backbone", where, len(weights), fit.prefix)
    for what, names in (("missing", fit.missing), ("left over", fit.left_over)):
        if names:
            _log.info("%s: %d tensors are %s: %s", where, len(names), what, ", ".join(names[:20]))
    return {
        "prefix": fit.prefix,
        "used": len(weights),
        "missing": len(fit.missing),
        "left_over": len(fit.left_over),
    }
