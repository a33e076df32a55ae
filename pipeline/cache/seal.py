"""Seals a complete cache: checks that its units agree, and writes the flat index over all rows."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache import layout, writer
from pipeline.cache.arrays import read_array
from pipeline.errors import CacheError, LossesError


@dataclass
class SplitCounts:
    """What became of the samples of one split; a sample skipped in any unit counts as skipped."""

    seen: int = 0
    skipped: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _ShardUnits:
    """What the units of one shard say of it, all alike; from their attributes alone."""

    split: str
    units: tuple[layout.UnitId, ...]
    digests: Mapping[str, str]  # of each unit, by its name
    reasons: Counter[str]
    entry: Mapping[str, Any]  # of the seal's list of shards


def seal_cache(
    cache: Path, manifest: Mapping[str, Any], max_skip_fraction: float
) -> dict[str, SplitCounts]:
    """Write the seal unless it stands already as it should, and return the counts by split.

    A seal that stands is told by the attributes of the units and the digests of its columns: arrays
    of units are opened only for a new one. Raises CacheError if units of one shard disagree on its
    samples, LossesError if more than `max_skip_fraction` of a split's samples were skipped.
    """
    shards = list(_shards(cache, manifest))
    seal = _seal(cache, manifest, shards)
    columns = _standing_columns(cache, seal)
    stands = columns is not None
    if columns is None:
        columns = _columns(cache, manifest, shards)
    counts = _counts(manifest, shards, columns)
    if not stands or _exceeded(counts, max_skip_fraction):
        writer.unseal(cache, manifest["generation"])
    _check_fractions(counts, max_skip_fraction)
    if not stands:
        digests = {name: layout.array_digest(column) for name, column in columns.items()}
        writer.publish_seal(cache, manifest["generation"], columns, {**seal, "columns": digests})
    return counts


def _shards(cache: Path, manifest: Mapping[str, Any]) -> Iterator[_ShardUnits]:
    """Yield every shard in the order of the seal; raises CacheError where units disagree."""
    wanted = layout.fingerprint(manifest)
    rows: Counter[str] = Counter()
    for (split, name), planned in groupby(
        layout.planned_units(manifest), key=lambda unit: (unit.split, unit.shard)
    ):
        units = []
        for unit in planned:
            attributes = layout.unit_attributes(cache, unit, wanted)
            if attributes is None:
                raise CacheError(f"{cache}: unit {unit.name} is missing: run teacher-cache again")
            units.append((unit, attributes))
        _check_agreement(cache, units)
        seen, shard = units[0][1]["counts"]["seen"], units[0][1]["shard"]
        skips = {skip["ordinal"]: skip["reason"] for _, item in units for skip in item["skips"]}
        yield _ShardUnits(
            split=split,
            units=tuple(unit for unit, _ in units),
            digests={unit.name: layout.unit_digest(attributes) for unit, attributes in units},
            reasons=Counter(skips.values()),
            entry={
                "name": name,
                "first": rows[split],
                "rows": seen,
                "size_bytes": shard["bytes"],
                "sha256": shard["sha256"],
            },
        )
        rows[split] += seen


def _check_agreement(cache: Path, units: Sequence[tuple[layout.UnitId, Mapping[str, Any]]]) -> None:
    """Raise CacheError unless the attributes of one shard's units tell of the same samples."""
    first_unit, first = units[0]
    for unit, attributes in units[1:]:
        differing = [
            name
            for name in ("keys", "digests", "samples")
            if attributes["digests"][name] != first["digests"][name]
        ]
        if attributes["shard"] != first["shard"]:
            differing.append("shard")
        if differing:
            raise CacheError(
                f"{cache}: {unit.name} and {first_unit.name} disagree on {', '.join(differing)}: "
                "the shard changed between them; remove both folders and run teacher-cache again"
            )


def _seal(
    cache: Path, manifest: Mapping[str, Any], shards: Sequence[_ShardUnits]
) -> dict[str, Any]:
    """Return all of the seal but the digests of its columns."""
    splits = {
        split: [shard.entry for shard in shards if shard.split == split]
        for split in manifest["splits"]
    }
    return {
        "generation": manifest["generation"],
        "manifest": layout.manifest_digest(cache, manifest["generation"]),
        "splits": {
            split: {"rows": sum(entry["rows"] for entry in entries), "shards": entries}
            for split, entries in splits.items()
        },
        "units": {name: digest for shard in shards for name, digest in shard.digests.items()},
    }


def _standing_columns(cache: Path, seal: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """Return the columns on disk if their seal is the one that is wanted, every column whole."""
    folder = layout.index_path(cache, seal["generation"])
    names = [f"{split}.{name}" for split in seal["splits"] for name in layout.INDEX_COLUMNS]
    try:
        found = dict(json.loads((folder / "seal.json").read_text(encoding="utf-8")))
        digests = found.pop("columns")
        columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
    except (OSError, ValueError, EOFError, TypeError, KeyError):
        return None
    if found != seal or digests != {n: layout.array_digest(c) for n, c in columns.items()}:
        return None
    return columns


def _columns(
    cache: Path, manifest: Mapping[str, Any], shards: Sequence[_ShardUnits]
) -> dict[str, np.ndarray]:
    """Read the flat columns, `{split}.{column}`, out of the units."""
    columns: dict[str, np.ndarray] = {}
    for split in manifest["splits"]:
        own = [shard for shard in shards if shard.split == split]
        parts = [_shard_columns(cache, shard, number) for number, shard in enumerate(own)]
        for name, dtype in layout.INDEX_COLUMNS.items():
            pieces = [part[name] for part in parts] or [np.empty(0)]
            columns[f"{split}.{name}"] = np.concatenate(pieces).astype(dtype)
    return columns


def _shard_columns(cache: Path, shard: _ShardUnits, number: int) -> dict[str, np.ndarray]:
    folders = [cache / "units" / unit.name for unit in shard.units]
    samples = read_array(folders[0], "samples")
    if len(samples) != shard.entry["rows"]:
        raise CacheError(
            f"{folders[0]}: its attributes count {shard.entry['rows']} samples, it holds "
            f"{len(samples)}; remove the folder and run teacher-cache again"
        )
    columns = {name: samples[:, place] for place, name in enumerate(layout.SAMPLE_COLUMNS)}
    columns["digest"] = read_array(folders[0], "digests")
    columns["shard"] = np.full(len(samples), number)
    columns["valid"] = np.all([read_array(f, "valid").all(axis=1) for f in folders], axis=0)
    return columns


def _counts(
    manifest: Mapping[str, Any],
    shards: Sequence[_ShardUnits],
    columns: Mapping[str, np.ndarray],
) -> dict[str, SplitCounts]:
    counts = {}
    for split in manifest["splits"]:
        valid = columns[f"{split}.valid"]
        counts[split] = SplitCounts(seen=len(valid), skipped=int((~valid).sum()))
    for shard in shards:
        counts[shard.split].reasons.update(shard.reasons)
    return counts


def _exceeded(counts: Mapping[str, SplitCounts], max_skip_fraction: float) -> list[str]:
    """Return the splits of which too many samples were skipped."""
    return [s for s, count in counts.items() if count.skipped > max_skip_fraction * count.seen]


def _check_fractions(counts: Mapping[str, SplitCounts], max_skip_fraction: float) -> None:
    for split in _exceeded(counts, max_skip_fraction):
        count = counts[split]
        reasons = ", ".join(f"{reason} {n}" for reason, n in count.reasons.most_common())
        raise LossesError(
            f"{count.skipped} of {count.seen} {split} samples were skipped ({reasons}): more than "
            f"max_skip_fraction {max_skip_fraction}, so the cache stays unsealed. Mend the shards, "
            "or raise max_skip_fraction in the recipe and run again"
        )
