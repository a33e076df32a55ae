"""Seals a complete cache: checks that its units agree, and writes the flat index over all rows."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache import layout, writer
from pipeline.cache.reader import read_array
from pipeline.errors import CacheError, LossesError


@dataclass
class SplitCounts:
    """What became of the samples of one split; a sample skipped in any unit counts as skipped."""

    seen: int = 0
    skipped: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


def seal_cache(
    cache: Path, manifest: Mapping[str, Any], max_skip_fraction: float
) -> dict[str, SplitCounts]:
    """Write the seal unless it stands already as it should, and return the counts by split.

    Raises CacheError if units of one shard disagree on its samples, LossesError if more than
    `max_skip_fraction` of a split's samples were skipped.
    """
    columns: dict[str, np.ndarray] = {}
    splits: dict[str, Any] = {}
    digests: dict[str, str] = {}
    counts: dict[str, SplitCounts] = {}
    for split, content in manifest["splits"].items():
        shards, parts = [], []
        counts[split] = SplitCounts()
        for number, shard in enumerate(content["shards"]):
            units = _units_of(cache, manifest, split, shard["name"])
            digests |= {unit.name: layout.unit_digest(attributes) for unit, attributes in units}
            part = _shard_columns(cache, [unit for unit, _ in units], number)
            shards.append(_shard_entry(units, first=counts[split].seen, rows=len(part["valid"])))
            parts.append(part)
            _count(counts[split], part["valid"], units)
        for name, dtype in layout.INDEX_COLUMNS.items():
            pieces = [part[name] for part in parts] or [np.empty(0)]
            columns[f"{split}.{name}"] = np.concatenate(pieces).astype(dtype)
        splits[split] = {"rows": counts[split].seen, "shards": shards}
    seal = {
        "generation": manifest["generation"],
        "manifest": layout.manifest_digest(cache, manifest["generation"]),
        "splits": splits,
        "units": digests,
        "columns": {name: layout.array_digest(column) for name, column in columns.items()},
    }
    stands = _stands(cache, seal)
    if not stands or _exceeded(counts, max_skip_fraction):
        writer.unseal(cache, manifest["generation"])
    _check_fractions(counts, max_skip_fraction)
    if not stands:
        writer.publish_seal(cache, manifest["generation"], columns, seal)
    return counts


def _stands(cache: Path, seal: Mapping[str, Any]) -> bool:
    """Tell whether the index on disk is the one that the units ask for, every column whole."""
    folder = layout.index_path(cache, seal["generation"])
    try:
        if json.loads((folder / "seal.json").read_text(encoding="utf-8")) != seal:
            return False
        columns = {name: np.load(folder / f"{name}.npy") for name in seal["columns"]}
    except (OSError, ValueError, EOFError):
        return False
    return bool({n: layout.array_digest(c) for n, c in columns.items()} == seal["columns"])


Units = Sequence[tuple[layout.UnitId, Mapping[str, Any]]]


def _units_of(cache: Path, manifest: Mapping[str, Any], split: str, shard: str) -> Units:
    """Return the shard's units with their attributes, which must tell of the same samples."""
    wanted = layout.fingerprint(manifest)
    units = []
    for unit in layout.planned_units(manifest):
        if (unit.split, unit.shard) != (split, shard):
            continue
        attributes = layout.unit_attributes(cache, unit, wanted)
        if attributes is None:
            raise CacheError(f"{cache}: unit {unit.name} is missing: run teacher-cache again")
        units.append((unit, attributes))
    first = units[0][1]
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
                f"{cache}: {unit.name} and {units[0][0].name} disagree on {', '.join(differing)}: "
                "the shard changed between them; remove both folders and run teacher-cache again"
            )
    return units


def _shard_columns(
    cache: Path, units: Sequence[layout.UnitId], number: int
) -> dict[str, np.ndarray]:
    folders = [cache / "units" / unit.name for unit in units]
    samples = read_array(folders[0], "samples")
    columns = {name: samples[:, place] for place, name in enumerate(layout.SAMPLE_COLUMNS)}
    columns["digest"] = read_array(folders[0], "digests")
    columns["shard"] = np.full(len(samples), number)
    columns["valid"] = np.all([read_array(f, "valid").all(axis=1) for f in folders], axis=0)
    return columns


def _shard_entry(units: Units, *, first: int, rows: int) -> dict[str, Any]:
    shard = units[0][1]["shard"]
    return {
        "name": units[0][0].shard,
        "first": first,
        "rows": rows,
        "size_bytes": shard["bytes"],
        "sha256": shard["sha256"],
    }


def _count(counts: SplitCounts, valid: np.ndarray, units: Units) -> None:
    counts.seen += len(valid)
    counts.skipped += int((~valid).sum())
    reasons = {
        skip["ordinal"]: skip["reason"] for _, attributes in units for skip in attributes["skips"]
    }
    counts.reasons.update(reasons.values())


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
