"""Loads timm's networks as teachers that see images and read no text.

Any of timm's names serves, with one of its tags (DINO, DINOv2, MAE, BEiT, supervised ones) or with
weights of a file in any form that `pipeline.fitting` knows (`beamclip pretrain` leaves one). Shape
letters: B batch, A texts, D teacher dimension, S side in pixels.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoints import find_weights, read_tensors, tensors_sha256
from pipeline.errors import StudentError, TeacherError
from pipeline.options import nearest, to_mapping
from pipeline.teacher.contract import DTYPES, LOCAL_DIR, Preprocess, Teacher, TeacherOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class TimmTeacher(Teacher):
    """A timm network in evaluation mode, without gradients; its vectors are of a feature point."""

    logit_scale = None
    logit_bias = None
    max_tokens = 0

    def __init__(self, spec: TeacherOptions, model: "nn.Module", device: "torch.device") -> None:
        import torch

        self.spec, self._device = spec, device
        self._hash = tensors_sha256(model.state_dict())
        self._architecture = _described(model)
        self.preprocess = _preprocess(model, spec)
        self._dtype = getattr(torch, DTYPES[spec.precision])
        on_gpu = device.type == "cuda"
        self._layout = torch.channels_last if on_gpu else torch.contiguous_format
        if spec.feature_point == "cls_pre_norm":
            model.norm = torch.nn.Identity()
        model = model.eval().requires_grad_(False).to(device, self._dtype)
        self._model = model.to(memory_format=self._layout) if on_gpu else model
        self._mean = torch.tensor(self.preprocess.mean, device=device)[:, None, None]
        self._std = torch.tensor(self.preprocess.std, device=device)[:, None, None]
        size = self.preprocess.size
        self.dim = int(
            self.encode_images(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape[1]
        )

    def encode_images(self, views_B3SS: "Tensor") -> "Tensor":
        """Return float32 [B,D] of uint8 views: what the network has at its feature point."""
        import torch

        if self._model.training:
            raise TeacherError(f"teacher {self.spec.model} is in training mode: put it in eval()")
        with torch.inference_mode():
            pixels = views_B3SS.to(self._device, non_blocking=True).float() / 255
            pixels = ((pixels - self._mean) / self._std).to(self._dtype)
            pixels = pixels.contiguous(memory_format=self._layout)
            model: Any = self._model
            if self.spec.feature_point in ("pooled", "logits"):
                vectors: Tensor = model(pixels)
            else:
                vectors = model.forward_features(pixels)[:, 0]
            if self.spec.top_k is not None:
                return _greatest(vectors.float(), self.spec.top_k)
            return vectors.float()

    def embed_texts(self, texts: Sequence[str]) -> "Tensor":
        """Raise TeacherError: there is no text tower."""
        raise self._reads_nothing()

    def count_tokens(self, text: str) -> int:
        """Raise TeacherError: there is no tokenizer."""
        raise self._reads_nothing()

    def fingerprint(self) -> dict[str, Any]:
        """Return all that tells this teacher from another, as plain values."""
        return {
            "kind": "timm",
            "model": self.spec.model,
            "pretrained": self.spec.pretrained,
            "weights_sha256": self._hash,
            "architecture": self._architecture,
            "preprocess": to_mapping(self.preprocess),
            "tokenizer": None,
            "precision": self.spec.precision,
            "feature_point": self.spec.feature_point,
            "top_k": self.spec.top_k,
            "dim": self.dim,
            "logit_scale": None,
            "logit_bias": None,
        }

    def _reads_nothing(self) -> TeacherError:
        return TeacherError(
            f"teacher {self.spec.model} sees images and reads no text: take an open_clip teacher "
            "for prompts, anchors and embedded captions"
        )


def check_timm(spec: TeacherOptions) -> None:
    """Raise TeacherError for what can be told in a moment, before anything heavy is imported."""
    assert spec.pretrained is not None
    if spec.pretrained.startswith(LOCAL_DIR):
        with _as_teacher(spec):
            find_weights(_path(spec.pretrained))


def load_timm(spec: TeacherOptions, device: "torch.device") -> Teacher:
    """Load a timm network with its weights; raises TeacherError."""
    check_timm(spec)
    with _as_teacher(spec):
        return TimmTeacher(spec, _network(spec), device)


def _network(spec: TeacherOptions) -> "nn.Module":
    """Return the network with its weights; its classifier is kept for logits alone."""
    import timm

    from pipeline.backbones import adopt, check_tag, timm_model, timm_weights
    from pipeline.stems import shrink_stem

    assert spec.pretrained is not None
    if not timm.is_model(spec.model):
        close = nearest(spec.model, timm.list_models())
        hint = close if "did you mean" in close else "see timm.list_models()"
        raise TeacherError(f"timm knows no model {spec.model!r}: {hint}")
    size = spec.input_px or int(timm.get_pretrained_cfg(spec.model).input_size[-1])
    head: dict[str, Any] = {} if spec.feature_point == "logits" else {"num_classes": 0}
    if spec.pretrained.startswith(LOCAL_DIR):
        tensors = read_tensors(find_weights(_path(spec.pretrained)))
        if not head:
            head = {"num_classes": _num_classes(spec, tensors)}
        model = timm_model(spec.model, size, **head)
        if spec.stem == "small":
            shrink_stem(model, spec.model)
        adopt(model, tensors, spec.pretrained)
    else:
        if spec.stem == "small":
            raise TeacherError(f"{spec.model}: timm's weights are of the imagenet stem")
        check_tag(spec.model, spec.pretrained)
        model = timm_model(f"{spec.model}.{spec.pretrained}", size, **head)
        _, tensors = timm_weights(model, size)
        model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    _check_point(model, spec)
    return model


def _num_classes(spec: TeacherOptions, tensors: "dict[str, Tensor]") -> int:
    """Return how many classes a file's classifier tells apart."""
    import timm

    heads = timm.get_pretrained_cfg(spec.model).classifier or ()
    for head in (heads,) if isinstance(heads, str) else heads:
        for name, tensor in tensors.items():
            if name == f"{head}.weight" or name.endswith(f".{head}.weight"):
                return int(tensor.shape[0])
    raise TeacherError(
        f"{spec.pretrained} holds no classifier, which feature_point logits asks for: take weights "
        "of supervised training, or another feature_point"
    )


def _check_point(model: Any, spec: TeacherOptions) -> None:
    """Raise TeacherError if a network has no such feature point."""
    point = spec.feature_point
    if point == "logits" and not model.num_classes:
        raise TeacherError(f"{spec.model}.{spec.pretrained} has no classifier: no logits")
    if not point.startswith("cls_"):
        return
    if getattr(model, "num_prefix_tokens", 0) < 1 or not hasattr(model, "norm"):
        raise TeacherError(
            f"{spec.model} has no class token, which feature_point {point} asks for: take pooled"
        )


def _greatest(logits_BD: "Tensor", k: int) -> "Tensor":
    """Return the k greatest logits of each row, shifted until the least is 1, and 0 elsewhere.

    A softmax over them is the same: it knows no shift.
    """
    greatest = logits_BD.topk(min(k, logits_BD.shape[1]), dim=1)
    shifted_BK = greatest.values - greatest.values[:, -1:] + 1
    return logits_BD.new_zeros(logits_BD.shape).scatter_(1, greatest.indices, shifted_BK)


def _described(model: "nn.Module") -> dict[str, Any]:
    from pipeline.backbones import config_of

    config = config_of(model)
    return {
        "architecture": config.get("architecture"),
        "shapes": {name: list(tensor.shape) for name, tensor in model.state_dict().items()},
    }


def _preprocess(model: "nn.Module", spec: TeacherOptions) -> Preprocess:
    """Read timm's own preprocessing; no margin is cut, as crop_pct would.

    Raises TeacherError for what views cannot reproduce.
    """
    from timm.data import resolve_data_config

    from pipeline.backbones import config_of

    own = config_of(model)
    config = resolve_data_config({}, pretrained_cfg=own)
    channels, height, width = config["input_size"]
    mode, interpolation = config["crop_mode"], config["interpolation"]
    known = mode in ("center", "squash") and interpolation in ("bicubic", "bilinear")
    if channels != 3 or height != width or not known:
        raise TeacherError(
            f"{spec.model}: expected a square RGB input, crop_mode center or squash, bicubic or "
            f"bilinear; found {config['input_size']}, {mode}, {interpolation}"
        )
    return Preprocess(
        size=spec.input_px or int(height),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=interpolation,
        resize_mode="squash" if mode == "squash" else "shortest",
    )


def _path(pretrained: str) -> Path:
    return Path(pretrained.removeprefix(LOCAL_DIR))


@contextlib.contextmanager
def _as_teacher(spec: TeacherOptions) -> Iterator[None]:
    """Say of which teacher what is said of networks and weights."""
    try:
        yield
    except StudentError as error:
        raise TeacherError(f"teacher {spec.model} ({spec.pretrained}): {error}") from None
