"""Names, shapes and types of everything in a cache: the contract between writer and reader.

    CACHE/manifest/000000.json    what the cache is made from; one file per generation
    CACHE/units/<unit>/           Zarr v3 group, published by one rename
    CACHE/anchors/<prompt set>/   Zarr v3 group, published by one rename
    CACHE/captions/<name>/        Zarr v3 group, published by one rename
    CACHE/index/000000/           the seal of that generation: flat columns over all rows

Shape letters: n samples of a shard, V views of a unit, D teacher dimension, P view parameters,
A anchors, T templates, K captions, N rows of a split.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.schedule import ViewParams

FORMAT = "beamclip-cache"
VERSION = 4
# All that a cache may hold.
PLACES = {".lock", ".tmp", "manifest", "units", "anchors", "captions", "index"}
CHUNK_ROWS = 4096
NORM_TOLERANCE = 2e-3  # of a float16 target: each of D components is rounded; 6e-5 at D = 512
PARAM_COLUMNS = ViewParams._fields
SAMPLE_COLUMNS = ("ordinal", "offset", "bytes", "width", "height", "label")
# Manifest fields that decide the bytes of a cache; the rest may differ between two runs.
FINGERPRINTED = ("teacher", "schedules", "decode", "batch", "libraries")


@dataclass(frozen=True)
class ArrayLayout:
    """One array of a unit: the meaning of each axis, and the type on disk."""

    axes: str
    dtype: str
    chunked_by_view: bool = False


UNIT_ARRAYS: Mapping[str, ArrayLayout] = {
    "targets": ArrayLayout("n V D", "float16", chunked_by_view=True),
    "norms": ArrayLayout("n V", "float32", chunked_by_view=True),
    "params": ArrayLayout("n V P", "float32", chunked_by_view=True),
    "valid": ArrayLayout("n V", "bool"),
    "keys": ArrayLayout("n", "str"),
    "digests": ArrayLayout("n", "uint64"),
    "samples": ArrayLayout("n 6", "int64"),
}
ANCHOR_ARRAYS: Mapping[str, ArrayLayout] = {
    "embeddings": ArrayLayout("A D", "float32"),
    "class_names": ArrayLayout("A", "str"),
    "texts": ArrayLayout("A T", "str"),
    "token_counts": ArrayLayout("A T", "int32"),
}
CAPTION_ARRAYS: Mapping[str, ArrayLayout] = {
    "embeddings": ArrayLayout("K D", "float32"),
    "texts": ArrayLayout("K", "str"),
    "token_counts": ArrayLayout("K", "int32"),
    "samples": ArrayLayout("K 2", "int64"),  # place in the attributes' list of shards, ordinal
}
# Flat columns of the seal, one .npy per split and column, all of length N.
INDEX_COLUMNS: Mapping[str, str] = {
    "shard": "int32",  # place in the seal's list of shards
    "ordinal": "int64",  # row in the shard's units
    "offset": "int64",  # of the encoded image in the tar
    "bytes": "int64",
    "width": "int32",
    "height": "int32",
    "valid": "bool",  # in every view of every schedule
    "label": "int64",
    "digest": "uint64",
}


@dataclass(frozen=True, order=True)
class UnitId:
    """One shard x one schedule x one contiguous range of views."""

    split: str
    shard: str
    schedule: str
    first: int
    last: int

    @property
    def name(self) -> str:
        """The unit's folder name."""
        return f"{self.split}-{self.shard}.{self.schedule}.v{self.first}-{self.last}"

    @property
    def num_views(self) -> int:
        """How many views the unit holds."""
        return self.last - self.first + 1


@dataclass(frozen=True)
class CachedShard:
    """A shard as the cache saw it: rows first to first + rows of the split."""

    name: str
    first: int
    rows: int
    size_bytes: int
    sha256: str


def planned_units(manifest: Mapping[str, Any]) -> list[UnitId]:
    """List every unit that a complete cache has, in order of split, shard, schedule, views."""
    return [
        UnitId(split, shard["name"], schedule, first, last)
        for split, content in manifest["splits"].items()
        for shard in content["shards"]
        for schedule, ranges in content["views"].items()
        for first, last in ranges
    ]


def num_views(ranges: Sequence[Sequence[int]]) -> int:
    """Return V of a split's view ranges, which together are 0 to V - 1."""
    return max(last for _, last in ranges) + 1


def generations(cache: Path) -> list[int]:
    """Return the numbers of the manifest generations on disk, oldest first."""
    found = (cache / "manifest").glob("[0-9]*.json")
    return sorted(int(path.stem) for path in found if path.stem.isdigit())


def is_sealed(cache: Path, generation: int) -> bool:
    """Tell whether a generation has a seal, whole or not."""
    return (index_path(cache, generation) / "seal.json").exists()


def anchor_names(cache: Path) -> list[str]:
    """Return the names of the prompt sets that a cache holds."""
    return sorted(found.parent.name for found in (cache / "anchors").glob("*/zarr.json"))


def caption_names(cache: Path) -> list[str]:
    """Return the names of the sets of captions that a cache holds."""
    return sorted(found.parent.name for found in (cache / "captions").glob("*/zarr.json"))


def manifest_path(cache: Path, generation: int) -> Path:
    """Where a manifest generation lies."""
    return cache / "manifest" / f"{generation:06d}.json"


def index_path(cache: Path, generation: int) -> Path:
    """Where the seal of a generation lies."""
    return cache / "index" / f"{generation:06d}"


def reads_text(manifest: Mapping[str, Any]) -> bool:
    """Tell whether a manifest's teacher has a text tower."""
    return manifest["teacher"]["tokenizer"] is not None


def fingerprint(manifest: Mapping[str, Any]) -> str:
    """Hash the manifest fields that decide the bytes of every unit (not the teacher's path)."""
    fields = {name: manifest[name] for name in FINGERPRINTED}
    fields["teacher"] = teacher_digest(fields["teacher"])
    return sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def teacher_digest(fields: Mapping[str, Any]) -> str:
    """Hash a teacher's fingerprint, but for the name or the folder that it was loaded by."""
    named = {**fields, "model": None, "pretrained": None}
    return sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def manifest_digest(cache: Path, generation: int) -> str:
    """Hash a manifest generation as it lies on disk."""
    return sha256(manifest_path(cache, generation).read_bytes()).hexdigest()


def unit_attributes(cache: Path, unit: UnitId, wanted: str) -> dict[str, Any] | None:
    """Return a published unit's attributes if it is complete and of this fingerprint, else None."""
    try:
        text = (cache / "units" / unit.name / "zarr.json").read_text(encoding="utf-8")
        attributes = json.loads(text)["attributes"]
        complete = attributes["unit"] == unit.name and set(attributes["digests"]) == {*UNIT_ARRAYS}
        _ = (
            attributes["counts"]["seen"],
            attributes["shard"]["bytes"],
            attributes["shard"]["sha256"],
        )
        _ = [(skip["ordinal"], skip["reason"]) for skip in attributes["skips"]]
        return dict(attributes) if complete and attributes["fingerprint"] == wanted else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def unit_digest(attributes: Mapping[str, Any]) -> str:
    """Hash the digests of a unit's arrays into the one that the seal records."""
    return sha256(json.dumps(attributes["digests"], sort_keys=True).encode()).hexdigest()


def chunk_shape(layout: ArrayLayout, shape: Sequence[int]) -> tuple[int, ...]:
    """Return chunks of at most 4,096 rows; one view each where views are read one by one."""
    chunks = [max(1, length) for length in shape]
    chunks[0] = min(chunks[0], CHUNK_ROWS)
    if layout.chunked_by_view:
        chunks[1] = 1
    return tuple(chunks)


def content_digests(arrays: Mapping[str, np.ndarray]) -> dict[str, str | list[str]]:
    """Hash decoded arrays; those that are read view by view get one hash per view."""
    digests: dict[str, str | list[str]] = {}
    for name, array in arrays.items():
        layout = UNIT_ARRAYS.get(name)
        if layout is not None and layout.chunked_by_view:
            digests[name] = [array_digest(array[:, view]) for view in range(array.shape[1])]
        else:
            digests[name] = array_digest(array)
    return digests


def array_digest(array: np.ndarray) -> str:
    """Return the sha256 of an array's shape and values (strings as JSON)."""
    digest = sha256(f"{array.shape}".encode())
    if array.dtype.kind in "OTU":
        digest.update(json.dumps(array.tolist()).encode())
    else:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def escape_key(key: str) -> str:
    """Return a key that any UTF-8 file can hold: backslashes doubled, stray bytes as \\xNN."""
    raw = key.replace("\\", "\\\\").encode("utf-8", "surrogateescape")
    return raw.decode("utf-8", "backslashreplace")
