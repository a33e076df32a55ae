"""Reads and checks a folder that holds an open_clip teacher.

What open_clip would quietly ignore, fit or replace is an error: the teacher is what its files say.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import TeacherError

CONFIG = "open_clip_config.json"
_PREPROCESS_FIELDS = ("size", "mean", "std", "interpolation", "resize_mode")
# Of several weights, open_clip takes these first; failing them it may take a pickle.
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")


def read_config(folder: Path) -> dict[str, Any]:
    """Return open_clip_config.json of a model folder whose files are all that a teacher needs.

    Raises TeacherError.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise TeacherError(
            f"no teacher in {folder}: expected {path.name} and .safetensors weights there "
            "(`beamclip teacher tiny` makes such a folder, as does open_clip's push_to_hf_hub)"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        preprocess = config["preprocess_cfg"]
        missing = [field for field in _PREPROCESS_FIELDS if field not in preprocess]
        _ = config["model_cfg"]
    except (ValueError, KeyError, TypeError) as error:
        raise TeacherError(f"{path}: expected model_cfg and preprocess_cfg; {error!r}") from None
    if missing:
        raise TeacherError(
            f"{path}: preprocess_cfg lacks {', '.join(missing)}; what is missing would silently "
            "become OpenAI's: state every field"
        )
    _weights(folder)
    return dict(config)


def check_code(architecture: Mapping[str, Any], model: str) -> None:
    """Raise TeacherError if loading the model would run code that comes with it."""
    text = architecture.get("text_cfg") or {}
    for section in (text, text.get("tokenizer_kwargs") or {}, text.get("hf_model_config") or {}):
        if section.get("trust_remote_code"):
            raise TeacherError(
                f"teacher {model} asks to run code of its own (trust_remote_code), which is never "
                "done: use a model that open_clip itself can build"
            )


def check_shapes(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise TeacherError if a tensor of a loaded model has another shape than in the weights.

    shapes: of the model, by name. open_clip interpolates or cuts position embeddings that do not
    fit, which makes another teacher of the same files.
    """
    from safetensors import safe_open

    path = _weights(folder)
    with safe_open(path, "numpy") as file:
        for name in sorted(set(file.keys()) & set(shapes)):
            held = tuple(file.get_slice(name).get_shape())
            if held != shapes[name] and len(held) > 1:
                raise TeacherError(
                    f"{folder / CONFIG}: its model has {name} of shape {shapes[name]}, {path.name} "
                    f"{held}: it was trained with another image size or text length; give its own"
                )


def _weights(folder: Path) -> Path:
    """Return the file of weights that open_clip will load, which is never a pickle."""
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise TeacherError(f"no .safetensors weights in {folder}: a random teacher is never used")
    for name in _WEIGHTS:
        if folder / name in found:
            return folder / name
    pickles = [path.name for kind in ("*.bin", "*.pth") for path in sorted(folder.glob(kind))]
    if len(found) > 1 or pickles:
        names = [*(path.name for path in found), *pickles]
        raise TeacherError(
            f"which weights of {folder} are meant? It holds {', '.join(names)}: name the ones to "
            f"use {_WEIGHTS[0]}"
        )
    return found[0]
