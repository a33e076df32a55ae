"""Loads open_clip's models as teachers, exactly as named.

A teacher that cannot be loaded with its own weights, preprocessing and tokenizer is an error:
open_clip would otherwise carry on with random weights, another model's preprocessing or a default
tokenizer. Shape letters: B batch, A texts, D teacher dimension, S side in pixels.
"""

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoints import tensors_sha256
from pipeline.errors import TeacherError
from pipeline.hub import offline_if_unreachable
from pipeline.options import nearest, to_mapping
from pipeline.teacher.contract import DTYPES, HF_HUB, LOCAL_DIR, Preprocess, Teacher, TeacherOptions
from pipeline.teacher.folder import check_code, check_shapes, read_config

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def check_open_clip(spec: TeacherOptions) -> None:
    """Raise TeacherError for what can be told in a moment, before anything heavy is imported."""
    if spec.model.startswith(LOCAL_DIR):
        read_config(_folder(spec.model))


class OpenClipTeacher(Teacher):
    """An open_clip model, in evaluation mode, without gradients."""

    def __init__(
        self,
        spec: TeacherOptions,
        model: Any,
        tokenizer: Any,
        architecture: dict[str, Any],
        device: "torch.device",
    ) -> None:
        import torch

        self.spec, self._tokenizer, self._device = spec, tokenizer, device
        self._architecture = architecture
        on_gpu = device.type == "cuda"  # its half-precision convolutions want channels_last
        self._layout = torch.channels_last if on_gpu else torch.contiguous_format
        self._model = model.eval().requires_grad_(False)
        if on_gpu:
            self._model = self._model.to(memory_format=self._layout)
        self._dtype = getattr(torch, DTYPES[spec.precision])
        self.preprocess = _preprocess(model.visual.preprocess_cfg, spec.model)
        self._mean = torch.tensor(self.preprocess.mean, device=device)[:, None, None]
        self._std = torch.tensor(self.preprocess.std, device=device)[:, None, None]
        self.logit_scale = float(model.logit_scale.detach().float().exp())
        bias = getattr(model, "logit_bias", None)
        self.logit_bias = None if bias is None else float(bias.detach().float())
        self.max_tokens = int(tokenizer.context_length)
        self.dim = int(self.embed_texts(["a"]).shape[1])

    def encode_images(self, views_B3SS: "Tensor") -> "Tensor":
        """Return what the image tower says of uint8 views: float32 [B,D], not normalised."""
        import torch

        self._check_mode()
        with torch.inference_mode():
            pixels = views_B3SS.to(self._device, non_blocking=True).float() / 255
            pixels = ((pixels - self._mean) / self._std).to(self._dtype)
            # One layout, whatever came: another would change the vectors' last bits.
            pixels = pixels.contiguous(memory_format=self._layout)
            vectors: Tensor = self._model.encode_image(pixels)
            # Cast first: normalising in half precision leaves norms off by a tenth of a percent.
            return vectors.float()

    @property
    def image_tower(self) -> "nn.Module":
        """The network that `encode_images` runs."""
        tower: nn.Module = self._model.visual
        return tower

    def embed_texts(self, texts: Sequence[str]) -> "Tensor":
        """Embed texts: float32 [A,D], normalised, on the CPU; over-long texts are the caller's."""
        import torch
        from torch.nn.functional import normalize

        self._check_mode()
        with torch.inference_mode():
            tokens = self._tokenizer(list(texts)).to(self._device)
            return normalize(self._model.encode_text(tokens).float(), dim=-1).cpu()

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a text, uncut, marks of start and end included."""
        if hasattr(self._tokenizer, "encode"):
            return len(self._tokenizer.encode(text)) + 2
        return len(self._tokenizer.tokenizer(text)["input_ids"])

    def fingerprint(self) -> dict[str, Any]:
        """Return all that tells this teacher from another, as plain values."""
        return {
            "model": self.spec.model,
            "pretrained": self.spec.pretrained,
            "weights_sha256": tensors_sha256(self._model.state_dict()),
            "architecture": self._architecture,
            "preprocess": to_mapping(self.preprocess),
            "tokenizer": f"{type(self._tokenizer).__name__}, {self.max_tokens} tokens",
            "precision": self.spec.precision,
            "dim": self.dim,
            "logit_scale": self.logit_scale,
            "logit_bias": self.logit_bias,
        }

    def _check_mode(self) -> None:
        if any(module.training for module in self._model.modules()):
            raise TeacherError(
                f"teacher {self.spec.model} is in training mode, where vectors depend on chance "
                "and on the rest of their batch: put it in evaluation mode"
            )


def load_open_clip(spec: TeacherOptions, device: "torch.device") -> Teacher:
    """Load an open_clip model; raises TeacherError."""
    check_open_clip(spec)
    if not spec.model.startswith(LOCAL_DIR):
        offline_if_unreachable()
    import open_clip

    if not spec.model.startswith((LOCAL_DIR, HF_HUB)):
        _check_name_and_tag(spec)
    with _quiet_log(), _named_errors(spec):
        architecture = _architecture(spec.model)
        check_code(architecture, spec.model)
        model = open_clip.create_model_from_pretrained(
            spec.model,
            pretrained=spec.pretrained,
            precision=spec.precision,
            device=device,
            return_transform=False,
        )
        tokenizer = open_clip.get_tokenizer(spec.model)
        teacher = OpenClipTeacher(spec, model, tokenizer, architecture, device)
        if spec.model.startswith(LOCAL_DIR):
            _check_folder(_folder(spec.model), teacher.preprocess, model)
    return teacher


def _folder(model: str) -> Path:
    return Path(model.removeprefix(LOCAL_DIR))


def _check_folder(folder: Path, preprocess: Preprocess, model: Any) -> None:
    """Raise TeacherError if the loaded model is not what its folder says."""
    stated = _preprocess(read_config(folder)["preprocess_cfg"], f"{LOCAL_DIR}{folder}")
    if stated != preprocess:
        raise TeacherError(
            f"{folder}: its preprocess_cfg says {stated}, its model takes {preprocess}: make them "
            "agree"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    check_shapes(folder, shapes)


def _check_name_and_tag(spec: TeacherOptions) -> None:
    import open_clip

    names = open_clip.list_models()
    if spec.model not in names:
        close = nearest(spec.model, names)
        hint = close if "did you mean" in close else "see open_clip.list_models()"
        raise TeacherError(f"open_clip knows no model {spec.model!r}: {hint}")
    tags = open_clip.list_pretrained_tags_by_model(spec.model)
    if spec.pretrained is None:
        raise TeacherError(
            f"teacher {spec.model} needs `pretrained`, one of: {', '.join(tags) or '(none)'}; "
            "a random teacher is never used"
        )
    if open_clip.get_pretrained_cfg(spec.model, spec.pretrained):
        return
    if Path(spec.pretrained).exists():
        raise TeacherError(
            f"{spec.pretrained} is a bare weights file, which says nothing of its preprocessing: "
            f"put it in a folder with open_clip_config.json and use model: {LOCAL_DIR}FOLDER"
        )
    raise TeacherError(
        f"{spec.model} has no tag {spec.pretrained!r}: {nearest(spec.pretrained, tags)}"
    )


@contextlib.contextmanager
def _named_errors(spec: TeacherOptions) -> Iterator[None]:
    """Say which teacher failed and what to do, whatever the library raised."""
    try:
        yield
    except TeacherError:
        raise
    except Exception as error:  # the hub's, torch's and safetensors' errors share no root
        what = f"teacher {spec.model}" + (f" ({spec.pretrained})" if spec.pretrained else "")
        advice = (
            "check that its files are whole"
            if spec.model.startswith(LOCAL_DIR)
            else "its weights must be in the hub's local cache or the hub reachable; or copy them "
            f"to a folder and use model: {LOCAL_DIR}FOLDER"
        )
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else ""
        raise TeacherError(
            f"cannot load {what}: {type(error).__name__}: {reason}; {advice}"
        ) from None


@contextlib.contextmanager
def _quiet_log() -> Iterator[None]:
    """Keep open_clip's own error log from repeating what the exception says."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _architecture(model: str) -> dict[str, Any]:
    """Return the model's configuration (quick_gelu included), as plain values."""
    import open_clip

    if model.startswith(LOCAL_DIR):
        config = read_config(_folder(model))["model_cfg"]
    elif model.startswith(HF_HUB):
        from huggingface_hub import hf_hub_download

        path = hf_hub_download(model.removeprefix(HF_HUB), "open_clip_config.json")
        config = json.loads(Path(path).read_text(encoding="utf-8"))["model_cfg"]
    else:
        config = open_clip.get_model_config(model)
    return {"quick_gelu": False, **json.loads(json.dumps(config))}


def _preprocess(config: dict[str, Any], model: str) -> Preprocess:
    """Read open_clip's preprocessing; raises TeacherError for what views cannot reproduce."""
    size, mean, std = config["size"], tuple(config["mean"]), tuple(config["std"])
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1 or config["interpolation"] not in ("bicubic", "bilinear"):
        raise TeacherError(f"{model}: expected a square input, bicubic or bilinear; found {config}")
    if config.get("mode", "RGB") != "RGB" or not (len(mean) == len(std) == 3 and min(std) > 0):
        raise TeacherError(f"{model}: expected RGB, 3 means, 3 positive stds; found {config}")
    if config["resize_mode"] == "longest" and config.get("fill_color", 0):
        raise TeacherError(f"{model}: padding with a fill_color other than 0 is not supported")
    return Preprocess(
        size=int(sides.pop()),
        mean=mean,
        std=std,
        interpolation=config["interpolation"],
        resize_mode=config["resize_mode"],
    )
