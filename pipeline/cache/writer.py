"""Publishes what a cache holds: units, prompt sets, captions, manifest, seal; each whole or not."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from pipeline import durable
from pipeline.cache import layout
from pipeline.errors import CacheError

_ZSTD_LEVEL = 3


@contextlib.contextmanager
def exclusive(cache: Path) -> Iterator[None]:
    """Hold the cache for writing; raises CacheError at once if another process does.

    Correctness does not rest on it: publishing is a rename that only one writer wins.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(durable.held(cache / ".lock"))
        except BlockingIOError:
            raise CacheError(
                f"{cache} is being written by another process: wait for it, or stop it"
            ) from None
        yield


def check_place(cache: Path) -> None:
    """Raise CacheError unless `cache` is new, empty or a cache: nobody's files are touched."""
    found = {path.name for path in cache.iterdir()} if cache.is_dir() else set()
    if foreign := sorted(found - layout.PLACES):
        raise CacheError(f"{cache} is no cache: it holds {foreign[0]!r}; name a new folder")
    if found - {".lock"} and "manifest" not in found:
        raise CacheError(
            f"{cache} has no manifest, so nothing says what the rest of it was made from: put "
            "manifest/ back, or name a new folder"
        )


def sweep(cache: Path) -> None:
    """Remove what interrupted writers left behind; call only while holding the cache.

    A lock does not stop the workers of a driver that died: each folder is moved off before it is
    emptied, so that one of theirs is either published whole or missed by its owner.
    """
    for file in (cache / "manifest").glob(".*.tmp"):
        file.unlink(missing_ok=True)
    left = cache / ".tmp"
    for folder in left.glob("*"):
        swept = left / f"swept.{uuid.uuid4().hex}"
        with contextlib.suppress(OSError):
            folder.rename(swept)
            shutil.rmtree(swept)
    with contextlib.suppress(OSError):
        left.rmdir()


def create_manifest(cache: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest generation; raises FileExistsError if another writer was first."""
    path = layout.manifest_path(cache, manifest["generation"])
    with durable.storing("a manifest", path):
        durable.create_json(path, manifest)
    durable.fault_point("after-manifest")


def publish_unit(
    cache: Path,
    unit: layout.UnitId,
    arrays: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any],
) -> bool:
    """Write a unit's arrays, read them back, then rename the group into place.

    arrays: as layout.UNIT_ARRAYS names them. attributes: counts, skips, shard, fingerprint. Returns
    False if the unit had been published by another writer; raises CacheError if what was read back
    is not what was written, or a valid target is not finite and normalised.
    """
    _check_targets(unit, arrays)
    full = {"format": layout.FORMAT, "version": layout.VERSION, "unit": unit.name, **attributes}
    return _publish_group(cache, f"units/{unit.name}", arrays, layout.UNIT_ARRAYS, full)


def publish_anchors(
    cache: Path, name: str, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]
) -> bool:
    """Write a prompt set's embeddings and texts; False if the set was there before."""
    full = {"format": layout.FORMAT, "version": layout.VERSION, "name": name, **attributes}
    return _publish_group(cache, f"anchors/{name}", arrays, layout.ANCHOR_ARRAYS, full)


def publish_captions(
    cache: Path, name: str, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]
) -> bool:
    """Write a set of captions, and which samples they tell of; False if it was there before."""
    full = {"format": layout.FORMAT, "version": layout.VERSION, "name": name, **attributes}
    return _publish_group(cache, f"captions/{name}", arrays, layout.CAPTION_ARRAYS, full)


def publish_seal(
    cache: Path, generation: int, columns: Mapping[str, np.ndarray], seal: Mapping[str, Any]
) -> None:
    """Write the flat columns ({split}.{column}) and seal.json as one folder."""
    final = layout.index_path(cache, generation)
    with durable.storing("the index", final, sum(column.nbytes for column in columns.values())):
        temporary = _temporary(cache, "index")
        for name, column in columns.items():
            np.save(temporary / f"{name}.npy", column)
        durable.write_json(temporary / "seal.json", seal)
        durable.publish_folder(temporary, final)


def unseal(cache: Path, generation: int) -> None:
    """Take the seal of an incomplete cache away: training must not trust it."""
    sealed = layout.index_path(cache, generation)
    if sealed.exists():
        sealed.rename(_temporary(cache, "unsealed") / sealed.name)


def drop_unit(cache: Path, name: str) -> None:
    """Move a damaged unit out of the way, so that it can be made again."""
    (cache / "units" / name).rename(_temporary(cache, "dropped") / name)


def drop_anchors(cache: Path, name: str) -> None:
    """Move a damaged prompt set out of the way, so that it can be embedded again."""
    (cache / "anchors" / name).rename(_temporary(cache, "dropped") / name)


def drop_captions(cache: Path, name: str) -> None:
    """Move a set of captions out of the way, so that it can be embedded again."""
    (cache / "captions" / name).rename(_temporary(cache, "dropped") / name)


def mend_parent_group(cache: Path, place: str) -> None:
    """Write what makes a folder of groups (units/, ...) one itself; those inside are left alone."""
    temporary = _temporary(cache, place)
    zarr.create_group(store=LocalStore(temporary), zarr_format=3)
    durable.fsync_tree(temporary)
    (cache / place).mkdir(parents=True, exist_ok=True)
    # Zarr, writing in place, would leave a temporary file among the groups if it were killed.
    durable.fault_point("before-parent")
    (temporary / "zarr.json").rename(cache / place / "zarr.json")
    durable.fsync_folder(cache / place)
    temporary.rmdir()


def _publish_group(
    cache: Path,
    place: str,
    arrays: Mapping[str, np.ndarray],
    layouts: Mapping[str, layout.ArrayLayout],
    attributes: Mapping[str, Any],
) -> bool:
    final = cache / place
    with durable.storing(final.name, final, sum(array.nbytes for array in arrays.values())):
        _ensure_parent_group(cache, final.parent.name)
        with _own_folder(cache, final.name) as (temporary, check_own):
            group = zarr.create_group(store=LocalStore(temporary), zarr_format=3)
            for name, array_layout in layouts.items():
                _write_array(group, name, array_layout, arrays[name])
            durable.fault_point("before-attributes")
            digests = layout.content_digests(arrays)
            _check_written(temporary, digests, layouts)
            group.attrs.update({**attributes, "digests": digests})
            check_own()
            return durable.publish_folder(temporary, final)


def _write_array(
    group: zarr.Group, name: str, array_layout: layout.ArrayLayout, array: np.ndarray
) -> None:
    floating = array_layout.dtype.startswith("float")
    stored = group.create_array(
        name,
        shape=array.shape,
        chunks=layout.chunk_shape(array_layout, array.shape),
        dtype=str if array_layout.dtype == "str" else array_layout.dtype,
        compressors=(ZstdCodec(level=_ZSTD_LEVEL), Crc32cCodec()),
        fill_value=float("nan") if floating else None,
        dimension_names=array_layout.axes.split(),
        config={"write_empty_chunks": True},
    )
    if array.size:
        stored[...] = array


def _check_targets(unit: layout.UnitId, arrays: Mapping[str, np.ndarray]) -> None:
    norms = np.linalg.norm(arrays["targets"][arrays["valid"]].astype(np.float32), axis=-1)
    if not np.all(np.abs(norms - 1) < layout.NORM_TOLERANCE):  # false for NaN too
        raise CacheError(f"unit {unit.name}: a valid target is not a normalised finite vector")
    lengths = arrays["norms"][arrays["valid"]]
    if not np.all((lengths > 0) & (lengths < np.inf)):
        raise CacheError(f"unit {unit.name}: a valid target has no finite norm above 0")


def _check_written(
    folder: Path,
    digests: Mapping[str, str | list[str]],
    layouts: Mapping[str, layout.ArrayLayout],
) -> None:
    """Read every array back from disk and compare it with what was to be written."""
    group = zarr.open_group(LocalStore(folder, read_only=True), mode="r")
    found = {name: np.asarray(group[name][...]) for name in layouts}  # type: ignore[index]
    if layout.content_digests(found) != digests:
        raise CacheError(f"{folder}: what was read back differs from what was written")


def _ensure_parent_group(cache: Path, place: str) -> None:
    """Make a folder of groups a Zarr group, so that a bare listing is clean."""
    if not (cache / place / "zarr.json").exists():
        mend_parent_group(cache, place)


@contextlib.contextmanager
def _own_folder(cache: Path, name: str) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Yield a temporary folder, gone at the end, with a check that it is still the same one.

    Writing to a folder that another driver swept away would make a second, with only the last of
    its files. The check raises FileNotFoundError.
    """
    folder = _temporary(cache, name)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # keeps its inode from reuse

    def check_own() -> None:
        if not os.path.samestat(os.stat(folder), os.fstat(descriptor)):
            raise FileNotFoundError(errno.ENOENT, "another driver swept it away", str(folder))

    try:
        yield folder, check_own
    finally:
        os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)


def _temporary(cache: Path, name: str) -> Path:
    folder = cache / ".tmp" / f"{name}.{uuid.uuid4().hex}"
    os.makedirs(folder)
    return folder
