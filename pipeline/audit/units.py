"""Checks published units: attributes, arrays, counts, and that units of one shard agree.

Shape letters: n samples of a shard, V views of a unit, D teacher dimension.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.audit.arrays import StoredGroup
from pipeline.audit.findings import Damaged, Findings, told
from pipeline.cache import layout

Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Expected:
    """What the manifest and, where there is one, the seal say of every unit.

    rows: by (split, shard).
    """

    fingerprint: str
    dim: int
    rows: Mapping[tuple[str, str], int]


def check_unit(
    cache: Path, unit: layout.UnitId, expected: Expected, findings: Findings, *, full: bool
) -> Attributes | None:
    """Add every problem of one unit; return its attributes if they can be trusted.

    By default attributes, small arrays and the presence of every chunk are checked; `full` decodes
    every chunk, holds it against its digest, and checks that valid targets are normalised finite
    vectors and invalid ones NaN.
    """
    place = f"units/{unit.name}"
    attributes: Attributes | None = None
    with findings.at(place):
        attributes = read_attributes(cache, unit, expected.fingerprint)
        rows = int(attributes["counts"]["seen"])
        sealed = expected.rows.get((unit.split, unit.shard), rows)
        if rows != sealed:
            raise Damaged(f"its attributes count {rows} samples, the seal {sealed}")
        stored = open_unit(cache, unit, attributes, expected.dim)
        small = _check_arrays(stored, unit, findings, full=full)
        for fault in _count_faults(attributes, rows, small):
            findings.add(place, fault)
    return attributes


def check_agreement(units: Sequence[tuple[layout.UnitId, Attributes]], findings: Findings) -> None:
    """Add a problem for each unit that tells of other samples than the shard's first unit."""
    first: dict[tuple[str, str], tuple[layout.UnitId, Attributes]] = {}
    for unit, attributes in units:
        other, wanted = first.setdefault((unit.split, unit.shard), (unit, attributes))
        differing = [
            name
            for name in ("keys", "digests", "samples")
            if attributes["digests"][name] != wanted["digests"][name]
        ]
        if attributes["shard"] != wanted["shard"]:
            differing.append("shard")
        if differing:
            findings.add(
                f"units/{unit.name}", f"disagrees with {other.name} on {', '.join(differing)}"
            )


def read_attributes(cache: Path, unit: layout.UnitId, fingerprint: str) -> Attributes:
    """Return a complete unit's attributes; raises Damaged saying why there are none."""
    folder = cache / "units" / unit.name
    found = layout.unit_attributes(cache, unit, fingerprint)
    if found is not None:
        return _readable(found)
    if not folder.is_dir():
        raise Damaged("is missing")
    try:
        attributes = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))["attributes"]
        other = attributes["fingerprint"] != fingerprint
    except Exception as error:  # garbage is no JSON, or JSON of any shape
        raise Damaged(f"its zarr.json is damaged ({told(error)})") from None
    if other:
        raise Damaged("was made from something else than the manifest says (by its fingerprint)")
    raise Damaged("its attributes are incomplete, or another unit's")


def _readable(attributes: Attributes) -> Attributes:
    """Return attributes that have every field read here; raises Damaged otherwise."""
    try:
        shard, counts, skips = attributes["shard"], attributes["counts"], attributes["skips"]
        numbers = [shard["bytes"], *(counts[name] for name in ("seen", "embedded", "skipped"))]
        numbers += [skip["ordinal"] for skip in skips]
        texts = [shard["sha256"], *(skip[name] for skip in skips for name in ("key", "reason"))]
        digests = dict(attributes["digests"])
    except Exception as error:  # JSON of any shape
        raise Damaged(f"its attributes are damaged ({error!r})") from None
    if not all(isinstance(n, int) for n in numbers) or not all(isinstance(t, str) for t in texts):
        raise Damaged("its attributes are damaged (a number or a text is none)")
    return {**attributes, "digests": digests}


def open_unit(cache: Path, unit: layout.UnitId, attributes: Attributes, dim: int) -> StoredGroup:
    """Open a unit whose attributes were found good."""
    lengths = {
        "n": int(attributes["counts"]["seen"]),
        "V": unit.num_views,
        "D": dim,
        "P": len(layout.PARAM_COLUMNS),
        "6": len(layout.SAMPLE_COLUMNS),
    }
    folder = cache / "units" / unit.name
    return StoredGroup(folder, layout.UNIT_ARRAYS, lengths, attributes["digests"])


def _check_arrays(
    stored: StoredGroup, unit: layout.UnitId, findings: Findings, *, full: bool
) -> dict[str, np.ndarray]:
    """Add the problems of each array; return the small ones that are whole."""
    place = f"units/{unit.name}"
    small: dict[str, np.ndarray] = {}
    by_view = {name: array.chunked_by_view for name, array in layout.UNIT_ARRAYS.items()}
    for name in (name for name in by_view if not by_view[name]):
        with findings.at(place, name):
            small[name] = stored.read(name)
    for name in (name for name in by_view if by_view[name]):
        for view in range(unit.num_views):
            with findings.at(place, name, unit.first + view):
                if not full:
                    stored.check_view(name, view)
                    continue
                values = stored.read_view(name, view)
                if name in _CHECKS and "valid" in small:
                    _CHECKS[name](values, small["valid"][:, view])
    return small


def _check_vectors(targets_nD: np.ndarray, valid_n: np.ndarray) -> None:
    """Raise Damaged unless valid rows are normalised finite vectors and the others are NaN."""
    norms_n = np.linalg.norm(targets_nD[valid_n].astype(np.float32), axis=1)
    wrong = ~(np.abs(norms_n - 1) < layout.NORM_TOLERANCE)  # true for NaN too
    if wrong.any():
        ordinal = np.flatnonzero(valid_n)[np.flatnonzero(wrong)[0]]
        raise Damaged(
            f"{wrong.sum()} valid targets are no normalised finite vectors, first sample {ordinal}"
        )
    if not np.isnan(targets_nD[~valid_n]).all():
        raise Damaged("an invalid row holds numbers instead of NaN")


def _check_norms(norms_n: np.ndarray, valid_n: np.ndarray) -> None:
    """Raise Damaged unless valid rows have finite norms above 0 and the others NaN."""
    wrong = ~((norms_n[valid_n] > 0) & (norms_n[valid_n] < np.inf))
    if wrong.any():
        ordinal = np.flatnonzero(valid_n)[np.flatnonzero(wrong)[0]]
        raise Damaged(f"{wrong.sum()} norms are not finite and above 0, first sample {ordinal}")
    if not np.isnan(norms_n[~valid_n]).all():
        raise Damaged("an invalid row holds a norm instead of NaN")


_CHECKS = {"targets": _check_vectors, "norms": _check_norms}


def _count_faults(
    attributes: Attributes, rows: int, small: Mapping[str, np.ndarray]
) -> Iterator[str]:
    """Yield what does not add up between a unit's counts, skips and arrays."""
    counts, skips = attributes["counts"], attributes["skips"]
    if counts["seen"] != counts["embedded"] + counts["skipped"]:
        yield f"its counts do not add up: {dict(counts)}"
    if counts["skipped"] != len(skips):
        yield f"it counts {counts['skipped']} skips and records {len(skips)}"
    ordinals = [skip["ordinal"] for skip in skips]
    if "valid" in small:
        invalid = np.flatnonzero(~small["valid"].all(axis=1)).tolist()
        if sorted(ordinals) != invalid:
            yield "its skips are not the rows that `valid` calls invalid"
    if "keys" in small and any(
        not 0 <= skip["ordinal"] < rows or small["keys"][skip["ordinal"]] != skip["key"]
        for skip in skips
    ):
        yield "its skips name other keys than `keys`"
    if "samples" in small and small["samples"][:, 0].tolist() != list(range(rows)):
        yield "its samples are not numbered from 0 on"
