"""Keeps the features of frozen encoders on disk, each under all that decides them."""

import json
import logging
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import __version__, durable, runtime
from pipeline.cache.layout import array_digest
from pipeline.contracts import Features

_log = logging.getLogger(__name__)
_VERSION = 1
_ARRAYS = tuple(field.name for field in fields(Features))


class FeatureStore:
    """Features by key, one .npz file each; a key is plain values.

    To the key are added this release and the libraries that decide pixels and vectors. What is read
    is held against the key and against its digest, so that nothing stale or damaged is ever used.
    """

    def __init__(self, folder: Path | None) -> None:
        """folder: made when first written to; None keeps nothing."""
        self._folder = folder

    def get(self, key: Mapping[str, Any], compute: Callable[[], Features]) -> Features:
        """Return what is kept under the key, else compute and keep it.

        A file that is damaged or of another key is told of and made anew; one that cannot be
        written is told of.
        """
        if self._folder is None:
            return compute()
        whole = json.dumps(
            {
                "version": _VERSION,
                "beamclip": __version__,
                "libraries": runtime.versions(),
                "key": key,
            },
            sort_keys=True,
        )
        path = self._folder / f"{sha256(whole.encode()).hexdigest()[:32]}.npz"
        try:
            return _read(path, whole)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            _log.warning(
                "%s is not as it was written (%s): its features are made anew", path, error
            )
        features = compute()
        try:
            _write(path, whole, features)
        except OSError as error:
            _log.warning("features are not kept: %s: %s", path, error.strerror or error)
        return features


def _write(path: Path, key: str, features: Features) -> None:
    arrays = {name: getattr(features, name) for name in _ARRAYS}
    with durable.replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, key=key, digest=_digest(arrays), **arrays)


def _read(path: Path, key: str) -> Features:
    """Return the features of a file; raises ValueError unless it is whole and of this key."""
    with np.load(path, allow_pickle=False) as file:
        if str(file["key"]) != key:
            raise ValueError("it is of another key")
        arrays = {name: file[name] for name in _ARRAYS}
        if str(file["digest"]) != _digest(arrays):
            raise ValueError("it does not match its digest")
    return Features(**arrays)


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    told = "".join(f"{name} {arrays[name].dtype} {array_digest(arrays[name])}\n" for name in arrays)
    return sha256(told.encode()).hexdigest()
