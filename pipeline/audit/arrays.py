"""Reads the arrays of a published group when anything about them may be wrong.

Shape letters: n samples of a shard, V views of a unit, D teacher dimension, P view parameters.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from pipeline.audit.findings import Damaged
from pipeline.cache import layout


def open_group(folder: Path) -> Any:
    """Open a published group for reading; raises whatever zarr raises for a damaged one."""
    return zarr.open_group(LocalStore(folder, read_only=True), mode="r")


def open_array(
    group: Any, name: str, array_layout: layout.ArrayLayout, shape: Sequence[int | None]
) -> "zarr.Array[Any]":
    """Open an array whose metadata is as the layout says.

    shape: what it must be; None where any length will do. Raises Damaged for other metadata: a
    flipped digit must not make a reader allocate a shape that nobody wrote.
    """
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise Damaged("is no array")
    found = tuple(array.shape)
    fits = len(found) == len(shape) and all(
        wanted in (None, length) for wanted, length in zip(shape, found, strict=True)
    )
    if not fits:
        wanted = ["any" if length is None else length for length in shape]
        raise Damaged(f"its metadata says shape {[*found]}, expected {wanted}")
    if array.chunks != layout.chunk_shape(array_layout, found):
        raise Damaged(f"its metadata says chunks {[*array.chunks]}")
    if array_layout.dtype != "str" and array.dtype != array_layout.dtype:
        raise Damaged(f"its metadata says type {array.dtype}, expected {array_layout.dtype}")
    return array


def check_chunk_files(folder: Path, array: "zarr.Array[Any]", view: int | None = None) -> None:
    """Raise Damaged at the first chunk file (of one view, or of all) that is missing or empty.

    A missing chunk would read as fill values, without an error.
    """
    counts = [-(-length // chunk) for length, chunk in zip(array.shape, array.chunks, strict=True)]
    ranges = [range(count) for count in counts]
    if view is not None:
        ranges[1] = range(view, view + 1)
    for place in itertools.product(*ranges):
        key = array.metadata.encode_chunk_key(place)
        try:
            size = (folder / array.basename / key).stat().st_size
        except FileNotFoundError:
            raise Damaged(f"chunk {key} is missing") from None
        if size == 0:
            raise Damaged(f"chunk {key} is empty (0 bytes)")


def read_whole(folder: Path, array: "zarr.Array[Any]", digest: object) -> np.ndarray:
    """Return an array after checking its files, checksums and digest; raises Damaged."""
    check_chunk_files(folder, array)
    return _matching(_decoded(array, ...), digest)


def read_view(folder: Path, array: "zarr.Array[Any]", view: int, digest: object) -> np.ndarray:
    """Return [:, view] of an array that is chunked by view, checked as `read_whole` does."""
    check_chunk_files(folder, array, view)
    return _matching(_decoded(array, (slice(None), view)), digest)


def _decoded(array: "zarr.Array[Any]", selection: Any) -> np.ndarray:
    try:
        return np.asarray(array[selection])
    except Exception as error:  # checksums, truncation and lost files raise many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise Damaged(f"is damaged ({reason[:200]})") from None


def _matching(values: np.ndarray, digest: object) -> np.ndarray:
    if layout.array_digest(values) != digest:
        raise Damaged("does not match its digest (a chunk swapped or of another run)")
    return values
