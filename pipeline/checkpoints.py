"""Reads the tensors of a weights file, as PyTorch or safetensors keep them; runs no code of it."""

import argparse
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import StudentError

if TYPE_CHECKING:
    from torch import Tensor

# What folders of weights call the ones that are meant: pretrain's, a run's, a hub's.
BACKBONE = "backbone.safetensors"
_NAMES = (BACKBONE, "student.safetensors", "model.safetensors", "pytorch_model.bin")
_KINDS = ("safetensors", "pt", "pth", "bin", "ckpt", "tar", "torch")
_SAFETENSORS = ".safetensors"


def find_weights(path: Path, *, said: str = "") -> Path:
    """Return a weights file: `path` itself, or the one that a folder holds; raises StudentError.

    said: what else might have been meant, for the message.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise StudentError(
            f"{str(path)!r}: no such file or folder; expected {said}a file of weights, or a folder "
            "with one"
        )
    for name in _NAMES:
        if (path / name).is_file():
            return path / name
    if list(path.glob("checkpoint-*.pt")):
        raise StudentError(f"{path} is not finished: run again the command that fills it")
    found = sorted(file for kind in _KINDS for file in path.glob(f"*.{kind}"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:8]) or "none"
        raise StudentError(
            f"which weights of the folder {path} are meant? Found: {names}; name the file itself"
        )
    return found[0]


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """Return every tensor of a file by its name, on the CPU; raises StudentError.

    Nested mappings become one level: {"state_dict": {"a.weight": ...}} is "state_dict.a.weight".
    Only tensors and plain values are unpickled (and argparse's namespace, in which DINO's
    checkpoints keep their options): what would run code is refused, and not run. A file that is cut
    short or does not match its checksums is refused too.
    """
    read = _read_safetensors if path.name.endswith(_SAFETENSORS) else _read_pickle
    tensors = dict(_tensors("", read(path)))
    if not tensors:
        raise StudentError(f"{path} holds no tensors by name: expected a state_dict of weights")
    return tensors


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    digest = sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def tensors_sha256(tensors: "Mapping[str, Tensor]") -> str:
    """Hash the name, type and bytes of every tensor, in name order: of what was really loaded."""
    import torch

    digest = sha256()
    for name, tensor in sorted(tensors.items()):
        flat: Any = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {flat.dtype} {tuple(flat.shape)}\n".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, struct.error, ValueError) as error:
        raise _damaged(path, error) from None


def _read_pickle(path: Path) -> Any:
    import torch

    try:
        _check_sums(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error) and "WeightsUnpickler" not in str(error):
            raise _damaged(path, error) from None
        raise StudentError(
            f"{path} holds more than tensors and plain values ({_refused(error)}), and reading "
            "that could run code: it was not read. If you trust it, load it yourself and save its "
            "state_dict alone"
        ) from None
    except Exception as error:  # damaged files fail in many ways
        raise _damaged(path, error) from None


def _check_sums(path: Path) -> None:
    """Check what torch.load does not look at; files older than torch 1.6 have no checksums."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} does not match its checksum")


def _tensors(prefix: str, value: Any) -> "Iterator[tuple[str, Tensor]]":
    """Yield tensors with their dotted names; what has no name (optimizers' states) is left out."""
    import torch

    if isinstance(value, torch.Tensor) and prefix:
        yield prefix, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if isinstance(name, str):
                yield from _tensors(f"{prefix}.{name}" if prefix else name, inner)


def _refused(error: Exception) -> str:
    """Return which class a safe reading refused, from the library's own words."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return found[1] if found else str(error).partition("\n")[0][:120]


def _damaged(path: Path, error: Exception) -> StudentError:
    reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"
    return StudentError(
        f"{path} cannot be read as weights ({reason}): expected a whole file of PyTorch's or "
        "safetensors; fetch it again"
    )
