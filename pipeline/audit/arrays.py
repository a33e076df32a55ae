"""Reads the arrays of a published group when anything about them may be wrong.

Shape letters: n samples of a shard, V views of a unit, D teacher dimension, P view parameters.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from pipeline.audit.findings import Damaged, told
from pipeline.cache import layout


class StoredGroup:
    """A published unit or prompt set, read with distrust.

    lengths: of each axis of the layouts, None where any will do. digests: by array, as the
    attributes hold them. Every method raises Damaged, or whatever zarr raises for bad metadata.
    """

    def __init__(
        self,
        folder: Path,
        layouts: Mapping[str, layout.ArrayLayout],
        lengths: Mapping[str, int | None],
        digests: Mapping[str, Any],
    ) -> None:
        self._folder, self._layouts = folder, layouts
        self._lengths, self._digests = lengths, digests
        self._group = zarr.open_group(LocalStore(folder, read_only=True), mode="r")
        self._opened: dict[str, zarr.Array[Any]] = {}

    def read(self, name: str) -> np.ndarray:
        """Return an array that is not chunked by view, checked against its digest."""
        array = self._open(name)
        self._check_files(array, None)
        return _matching(_decoded(array, ...), self._digests[name])

    def read_view(self, name: str, view: int) -> np.ndarray:
        """Return [:, view] of an array that is chunked by view, checked against its digest."""
        self.check_view(name, view)
        values = _decoded(self._open(name), (slice(None), view))
        return _matching(values, self._digests[name][view])

    def check_view(self, name: str, view: int) -> None:
        """Check that a view has its digest and all its files, without reading them."""
        array, digests = self._open(name), self._digests[name]
        if not isinstance(digests, list) or len(digests) != array.shape[1]:
            raise Damaged("the attributes do not hold one digest per view")
        self._check_files(array, view)

    def _open(self, name: str) -> "zarr.Array[Any]":
        """Open an array whose metadata is as the layout says.

        A flipped digit must not make a reader allocate a shape that nobody wrote.
        """
        if name not in self._opened:
            array = self._group[name]
            if not isinstance(array, zarr.Array):
                raise Damaged("is no array")
            wanted = [self._lengths[axis] for axis in self._layouts[name].axes.split()]
            _check_metadata(array, self._layouts[name], wanted)
            self._opened[name] = array
        return self._opened[name]

    def _check_files(self, array: "zarr.Array[Any]", view: int | None) -> None:
        """Find every chunk file (of one view, or of all): a missing one would read as fill values.

        Stops at the first, so that absurd metadata costs no time.
        """
        sizes = zip(array.shape, array.chunks, strict=True)
        ranges = [range(-(-length // chunk)) for length, chunk in sizes]
        if view is not None:
            ranges[1] = range(view, view + 1)
        for place in itertools.product(*ranges):
            key = array.metadata.encode_chunk_key(place)
            try:
                size = (self._folder / array.basename / key).stat().st_size
            except FileNotFoundError:
                raise Damaged(f"chunk {key} is missing") from None
            if size == 0:
                raise Damaged(f"chunk {key} is empty (0 bytes)")


def _check_metadata(
    array: "zarr.Array[Any]", wanted: layout.ArrayLayout, lengths: Sequence[int | None]
) -> None:
    shape = tuple(array.shape)
    fits = len(shape) == len(lengths) and all(
        expected in (None, length) for expected, length in zip(lengths, shape, strict=True)
    )
    if not fits:
        expected = ["any" if length is None else length for length in lengths]
        raise Damaged(f"its metadata says shape {[*shape]}, expected {expected}")
    if array.chunks != layout.chunk_shape(wanted, shape):
        raise Damaged(f"its metadata says chunks {[*array.chunks]}")
    if wanted.dtype != "str" and array.dtype != wanted.dtype:
        raise Damaged(f"its metadata says type {array.dtype}, expected {wanted.dtype}")


def _decoded(array: "zarr.Array[Any]", selection: Any) -> np.ndarray:
    try:
        return np.asarray(array[selection])
    except Exception as error:  # checksums, truncation and lost files raise many kinds
        raise Damaged(f"is damaged ({told(error)})") from None


def _matching(values: np.ndarray, digest: object) -> np.ndarray:
    if layout.array_digest(values) != digest:
        raise Damaged("does not match its digest (a chunk swapped or of another run)")
    return values
