"""Reads a sealed cache with numpy and zarr alone: no torch, no teacher, no dask.

Shape letters: N rows of a split, V views, D teacher dimension, P view parameters, A anchors,
T templates, K captions, B batch.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.cache import layout
from pipeline.cache.arrays import REDO, attributes_of, open_array, read_array, read_raw
from pipeline.cache.captions import Captions, located, read_captions
from pipeline.cache.layout import CachedShard
from pipeline.cache.scratch import shared_array
from pipeline.errors import CacheError
from pipeline.options import nearest
from pipeline.schedule import EVAL, AnySchedule, schedule_from

if TYPE_CHECKING:
    import dask.array

_RESEAL = "run teacher-cache again: it writes the index anew from the units"


@dataclass(frozen=True)
class Anchors:
    """A prompt set as the teacher embeds it.

    embeddings_AD: float32, normalised. texts[anchor][template], as they were filled; `cuts` are
    those of which a part was embedded ({anchor, template, kept: characters, tokens: of the whole}).
    labelled: whether anchor i stands for label i.
    """

    name: str
    embeddings_AD: np.ndarray
    class_names: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...]
    token_counts_AT: np.ndarray
    teacher_digest: str
    labelled: bool = True
    cuts: tuple[Mapping[str, int], ...] = ()


def no_anchors(dim: int) -> Anchors:
    """Return the anchors of no class, float32 [0,D]: of a teacher that reads no text."""
    nothing = np.empty((0, dim), np.float32)
    return Anchors("", nothing, (), (), (), np.empty((0, 0), np.int32), "", labelled=False)


class TargetCache:
    """The rows of one split under one schedule; open it with `TargetCache.open`."""

    def __init__(
        self,
        path: Path,
        manifest: Mapping[str, Any],
        seal: Mapping[str, Any],
        split: str,
        name: str,
    ) -> None:
        self.path, self.manifest, self.split, self.schedule_name = path, manifest, split, name
        self._seal = seal
        self._columns: dict[str, np.ndarray] = {}
        self._maps: dict[tuple[str, int], np.ndarray] = {}
        self.shards = tuple(CachedShard(**shard) for shard in seal["splits"][split]["shards"])
        self._ranges: list[tuple[int, int]] = [
            (first, last) for first, last in manifest["splits"][split]["views"][name]
        ]

    @classmethod
    def open(
        cls,
        path: Path | str,
        split: str = "train",
        schedule: str | None = None,
        *,
        generation: int | None = None,
    ) -> "TargetCache":
        """Open one split of a sealed cache.

        schedule: a schedule's name; by default the only one beside `eval`, or `eval` itself.
        generation: the manifest to read by; by default the newest. Raises CacheError.
        """
        path = Path(path)
        manifest = read_manifest(path, generation)
        seal = _read_seal(path, manifest["generation"])
        if seal["manifest"] != layout.manifest_digest(path, manifest["generation"]):
            raise CacheError(f"{path}: the manifest is not the one that was sealed; put it back")
        if split not in manifest["splits"]:
            hint = nearest(split, manifest["splits"])
            raise CacheError(f"{path} has no split {split!r}: {hint}")
        views = manifest["splits"][split]["views"]
        if schedule is None:
            others = [name for name in views if name != EVAL]
            schedule = others[0] if len(others) == 1 else EVAL
        if schedule not in views:
            raise CacheError(
                f"{path} has no schedule {schedule!r} for split {split}: {nearest(schedule, views)}"
            )
        return cls(path, manifest, seal, split, schedule)

    def __len__(self) -> int:
        return int(self._seal["splits"][self.split]["rows"])

    @property
    def dim(self) -> int:
        """The teacher's dimension D."""
        return int(self.manifest["teacher"]["dim"])

    @property
    def num_views(self) -> int:
        """How many views every sample has under this schedule."""
        return layout.num_views(self._ranges)

    @property
    def logit_scale(self) -> float:
        """The teacher's own logit scale: 1 / its temperature; NaN if it reads no text."""
        scale = self.manifest["teacher"]["logit_scale"]
        return float("nan") if scale is None else float(scale)

    @cached_property
    def schedule(self) -> AnySchedule:
        """The rule that decided the views."""
        return schedule_from(self.manifest["schedules"][self.schedule_name])

    @cached_property
    def digest(self) -> str:
        """A hash of all that this split and schedule hold, from the digests of its units."""
        units = self._seal["units"]
        names = sorted(unit.name for unit in self._units())
        return sha256("".join(f"{name} {units[name]}\n" for name in names).encode()).hexdigest()

    def column(self, name: str) -> np.ndarray:
        """Return one column of layout.INDEX_COLUMNS over all rows, memory-mapped, [N]."""
        if name not in self._columns:
            self._columns[name] = self._checked_column(f"{self.split}.{name}")
        return self._columns[name]

    def _checked_column(self, name: str) -> np.ndarray:
        file = layout.index_path(self.path, self.manifest["generation"]) / f"{name}.npy"
        try:
            column: np.ndarray = np.load(file, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise CacheError(f"{file} is damaged or gone ({error}); {_RESEAL}") from None
        if layout.array_digest(column) != self._seal["columns"][name]:
            raise CacheError(f"{file} is not as it was sealed; {_RESEAL}")
        return column

    def row_of(self, shard: str, ordinal: int) -> int:
        """Return the row of the sample number `ordinal` of a shard; raises CacheError."""
        for item in self.shards:
            if item.name == shard and 0 <= ordinal < item.rows:
                return item.first + ordinal
        raise CacheError(f"{self.path}: no sample {ordinal} in shard {self.split}-{shard}")

    def rows_of(self, key: str) -> np.ndarray:
        """Return every row whose key this is, int64 (a key may appear in several shards)."""
        return np.flatnonzero(self.keys == layout.escape_key(key))

    @cached_property
    def keys(self) -> np.ndarray:
        """The (escaped) keys of all rows, [N]; read from the units when first asked for."""
        first = self._ranges[0]
        parts = [read_array(self.path / self._unit(shard, first), "keys") for shard in self.shards]
        return np.concatenate([np.asarray(part, dtype=object) for part in parts])

    def targets(self, rows: np.ndarray, view: int) -> np.ndarray:
        """Return the targets of some rows in one view: float32 [B,D], normalised.

        Normalised anew: rounding to float16 had moved the norm by up to 1e-3.
        """
        return normalised(self.view(view)[rows])

    def norms(self, rows: np.ndarray, view: int) -> np.ndarray:
        """Return the lengths that targets had before they were normalised: float32 [B]."""
        return np.asarray(self._mapped("norms", view)[rows, 0])

    def view_params(self, rows: np.ndarray, view: int) -> np.ndarray:
        """Return the parameters that decided these views: float32 [B,P]."""
        return np.asarray(self._mapped("params", view)[rows])

    def view(self, view: int) -> np.ndarray:
        """Return all targets of one view as a memory map: float16 [N,D], NaN where invalid.

        Decoded and checked once per machine, into a scratch folder that all processes share.
        """
        return self._mapped("targets", view)

    def iter_units(self, view: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (rows, targets float16 [n,D]) unit by unit, checked against the unit's digests."""
        yield from self._iter_units("targets", view)

    def of_shard(self, array: str, shard: int, view: int) -> np.ndarray:
        """Return one view of a shard (by number): targets [n,D], norms [n] or params [n,P]."""
        return self._checked(array, self.shards[shard], self._range_of(view), view)

    def anchors(self, name: str) -> Anchors:
        """Return a prompt set; raises CacheError naming the nearest one if it is not there."""
        return read_anchors(self.path, name)

    def captions(self, name: str) -> Captions:
        """Return a set of captions with the rows of this split that they tell of.

        Raises CacheError naming the nearest set if it is not there, or if it is of another split,
        and CacheMismatchError if it is of other shards or of another teacher.
        """
        stored = read_captions(self.path, name)
        teacher = layout.teacher_digest(self.manifest["teacher"])
        return located(stored, self.split, self.shards, self.column("valid"), teacher)

    def as_dask(self) -> "dask.array.Array":
        """Return all targets as a lazy dask array: float16 [N,V,D], one block per chunk.

        Chunks are checked by their checksums alone, not against the unit's digests: a lost chunk
        reads as NaN.
        """
        import dask.array

        shards = [
            dask.array.concatenate(
                [
                    dask.array.from_zarr(
                        open_array(self.path / self._unit(shard, views), "targets")
                    )
                    for views in self._ranges
                ],
                axis=1,
            )
            for shard in self.shards
        ]
        return dask.array.concatenate(shards, axis=0)

    def _units(self) -> list[layout.UnitId]:
        return [
            layout.UnitId(self.split, shard.name, self.schedule_name, *views)
            for shard in self.shards
            for views in self._ranges
        ]

    def _unit(self, shard: CachedShard, views: tuple[int, int]) -> str:
        return "units/" + layout.UnitId(self.split, shard.name, self.schedule_name, *views).name

    def _iter_units(self, array: str, view: int) -> Iterator[tuple[slice, np.ndarray]]:
        views = self._range_of(view)
        for shard in self.shards:
            values = self._checked(array, shard, views, view)
            yield slice(shard.first, shard.first + shard.rows), values

    def _range_of(self, view: int) -> tuple[int, int]:
        views = next((r for r in self._ranges if r[0] <= view <= r[1]), None)
        if views is None:
            raise CacheError(
                f"{self.path}: schedule {self.schedule_name!r} has views 0 to "
                f"{self.num_views - 1}, not {view}"
            )
        return views

    def _checked(
        self, array: str, shard: CachedShard, views: tuple[int, int], view: int
    ) -> np.ndarray:
        """Read one view of a unit's array and hold it against the seal and its digest."""
        place = self._unit(shard, views)
        values = read_raw(self.path / place, array, (slice(None), view - views[0]))
        attributes = attributes_of(self.path / place)
        if layout.unit_digest(attributes) != self._seal["units"][place.removeprefix("units/")]:
            raise CacheError(f"{self.path}/{place} is not the unit that was sealed; {REDO}")
        if layout.array_digest(values) != attributes["digests"][array][view - views[0]]:
            raise CacheError(
                f"{self.path}/{place}: view {view} of {array!r} does not match its digest "
                f"(a chunk lost, swapped or of another run); {REDO}"
            )
        return values

    def _mapped(self, array: str, view: int) -> np.ndarray:
        if (array, view) not in self._maps:
            self._maps = {key: value for key, value in self._maps.items() if key[1] == view}
            self._maps[array, view] = self._map(array, view)
        return self._maps[array, view]

    def _map(self, array: str, view: int) -> np.ndarray:
        width = {"targets": self.dim, "norms": 1, "params": len(layout.PARAM_COLUMNS)}[array]
        return shared_array(
            f"{self.digest[:32]}-{array}-{view}",
            (len(self), width),
            layout.UNIT_ARRAYS[array].dtype,
            (values.reshape(-1, width) for _, values in self._iter_units(array, view)),
        )


def normalised(targets_BD: np.ndarray) -> np.ndarray:
    """Return vectors as float32 [B,D] of norm 1."""
    found_BD = np.asarray(targets_BD, dtype=np.float32)
    found_BD /= np.linalg.norm(found_BD, axis=1, keepdims=True)
    return found_BD


def read_manifest(path: Path, generation: int | None = None) -> dict[str, Any]:
    """Return a manifest generation, by default the newest; raises CacheError."""
    found = layout.generations(path)
    if not found:
        raise CacheError(
            f"no cache in {path}: make one with `beamclip teacher-cache --cache {path}`"
        )
    if generation is not None and generation not in found:
        raise CacheError(f"{path} has no generation {generation}; its newest is {found[-1]}")
    file = layout.manifest_path(path, found[-1] if generation is None else generation)
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        kind, version = manifest["format"], manifest["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheError(
            f"{file} is no readable manifest ({error!r}): put it back from a copy, or make the "
            "cache anew"
        ) from None
    if kind != layout.FORMAT or version != layout.VERSION:
        raise CacheError(
            f"{file}: expected {layout.FORMAT} version {layout.VERSION}, found {kind} version "
            f"{version}; read it with the beamclip release that wrote it, or make the cache anew"
        )
    return dict(manifest)


def read_anchors(path: Path, name: str) -> Anchors:
    """Return a prompt set of a cache, sealed or not; raises CacheError."""
    folder = path / "anchors" / name
    known = layout.anchor_names(path)
    if name not in known:
        hint = nearest(name, known) if known else "it has none"
        raise CacheError(f"{path} has no anchors {name!r}: {hint}")
    arrays = {array: read_raw(folder, array) for array in layout.ANCHOR_ARRAYS}
    attributes = attributes_of(folder)
    if layout.content_digests(arrays) != attributes["digests"]:
        raise CacheError(f"{folder} does not match its digests; {REDO}")
    return Anchors(
        name=name,
        embeddings_AD=arrays["embeddings"],
        class_names=tuple(arrays["class_names"].tolist()),
        texts=tuple(tuple(texts) for texts in arrays["texts"].tolist()),
        templates=tuple(attributes["templates"]),
        token_counts_AT=arrays["token_counts"],
        teacher_digest=str(attributes["teacher"]),
        labelled=bool(attributes.get("labelled", True)),
        cuts=tuple(attributes.get("cuts", ())),
    )


def _read_seal(path: Path, generation: int) -> dict[str, Any]:
    file = layout.index_path(path, generation) / "seal.json"
    try:
        seal = dict(json.loads(file.read_text(encoding="utf-8")))
        _ = seal["manifest"], seal["splits"], seal["units"], seal["columns"]
    except FileNotFoundError:
        raise CacheError(_unsealed(path, generation)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{file} is damaged ({error!r}); {_RESEAL}") from None
    return seal


def _unsealed(path: Path, generation: int) -> str:
    """Say what a generation without a seal needs, and which older one serves meanwhile."""
    older = [n for n in layout.generations(path) if n < generation and layout.is_sealed(path, n)]
    which = f"generation {generation} of {path}" if older else f"{path}"
    return (
        f"{which} is not sealed: stage one has not finished, or something was lost from it; run "
        "teacher-cache again, it goes on where it stopped"
    ) + (f" (generation {older[-1]} is sealed: --generation {older[-1]})" if older else "")
