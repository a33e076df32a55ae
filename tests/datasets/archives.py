"""Official archives in miniature: real tars, pickles, .mat and idx files, as they are laid out."""

import gzip
import hashlib
import io
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.inputs import encode, square


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def jpeg(label: int, seed: int, width: int = 40, height: int = 36) -> bytes:
    return encode(square(label % 3, seed, width, height), "JPEG")


def write_tar(path: Path, members: Mapping[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def tar_bytes(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def idx(array: np.ndarray) -> bytes:
    """Return the idx format of MNIST's files: magic, sizes (big-endian), bytes."""
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def mat(**arrays: object) -> bytes:
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, arrays)
    return buffer.getvalue()


def cifar_batches(base: str, names: Mapping[str, int], key: str, meta: bytes) -> dict[str, bytes]:
    """Return the pickled batches of a CIFAR archive, `names` with their numbers of images."""
    rng = np.random.default_rng(0)
    members = {f"{base}/{'batches.meta' if 'batch' in base else 'meta'}": meta}
    for name, count in names.items():
        data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        batch = {"data": data, key: [i % 3 for i in range(count)]}
        members[f"{base}/{name}"] = pickle.dumps(batch)
    return members


def gz(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)
