"""Opens arrays of a cache's groups for reading; an error of damage says what mends it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from pipeline.cache import layout
from pipeline.errors import CacheError

REDO = "`beamclip cache repair` makes it anew, and touches nothing else"


def read_array(group: Path, name: str) -> np.ndarray:
    """Return an array of a unit (not one that is chunked by view), checked against its digest."""
    values = read_raw(group, name)
    if layout.array_digest(values) != attributes_of(group)["digests"][name]:
        raise CacheError(f"{group}: {name!r} does not match its digest; {REDO}")
    return values


def open_array(group: Path, name: str) -> "zarr.Array[Any]":
    """Open an array; raises CacheError if it is not there or its metadata are damaged."""
    try:
        found = zarr.open_group(LocalStore(group, read_only=True), mode="r")[name]
    except Exception as error:  # missing and damaged metadata raise many kinds
        reason = f"{type(error).__name__}: {error}"
        raise CacheError(f"{group}: cannot open {name!r} ({reason}); {REDO}") from None
    if not isinstance(found, zarr.Array):
        raise CacheError(f"{group}: {name!r} is no array; {REDO}")
    return found


def read_raw(group: Path, name: str, selection: Any = ...) -> np.ndarray:
    """Return (part of) an array, held against its chunks' checksums alone; raises CacheError."""
    found = open_array(group, name)
    try:
        return np.asarray(found[selection])
    except Exception as error:  # checksums, truncation and lost files raise many kinds
        reason = f"{type(error).__name__}: {error}"
        raise CacheError(f"{group}: {name!r} is damaged ({reason}); {REDO}") from None


def attributes_of(group: Path) -> dict[str, Any]:
    """Return a group's attributes without opening its arrays."""
    try:
        metadata = json.loads((group / "zarr.json").read_text(encoding="utf-8"))
        attributes = metadata["attributes"]
        _ = attributes["digests"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{group}: damaged zarr.json ({error!r}); {REDO}") from None
    return dict(attributes)
