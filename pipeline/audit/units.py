"""Checks published units: attributes, arrays, counts, and that units of one shard agree.

Shape letters: n samples of a shard, V views of a unit, D teacher dimension.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.audit import arrays
from pipeline.audit.findings import Damaged, Findings
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
        attributes = _attributes(cache / place, unit, expected.fingerprint)
        rows = int(attributes["counts"]["seen"])
        sealed = expected.rows.get((unit.split, unit.shard), rows)
        if rows != sealed:
            raise Damaged(f"its attributes count {rows} samples, the seal {sealed}")
        small = _check_arrays(cache, unit, attributes, expected.dim, findings, full=full)
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


def _attributes(folder: Path, unit: layout.UnitId, fingerprint: str) -> Attributes:
    """Return a complete unit's attributes; raises Damaged saying why there are none."""
    found = layout.unit_attributes(folder.parents[1], unit, fingerprint)
    if found is not None:
        return _readable(found)
    if not folder.is_dir():
        raise Damaged("is missing")
    try:
        attributes = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))["attributes"]
        other = attributes["fingerprint"] != fingerprint
    except Exception as error:  # garbage is no JSON, or JSON of any shape
        raise Damaged(f"its zarr.json is damaged ({type(error).__name__}: {error})") from None
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


def _check_arrays(
    cache: Path,
    unit: layout.UnitId,
    attributes: Attributes,
    dim: int,
    findings: Findings,
    *,
    full: bool,
) -> dict[str, np.ndarray]:
    """Add the problems of each array; return the small ones that are whole."""
    place = f"units/{unit.name}"
    folder = cache / place
    group = arrays.open_group(folder)
    lengths = {
        "n": int(attributes["counts"]["seen"]),
        "V": unit.num_views,
        "D": dim,
        "P": len(layout.PARAM_COLUMNS),
        "6": len(layout.SAMPLE_COLUMNS),
    }
    small: dict[str, np.ndarray] = {}
    for name, array in layout.UNIT_ARRAYS.items():
        if not array.chunked_by_view:
            with findings.at(place, name):
                stored = arrays.open_array(
                    group, name, array, [lengths[a] for a in array.axes.split()]
                )
                small[name] = arrays.read_whole(folder, stored, attributes["digests"][name])
    for name, array in layout.UNIT_ARRAYS.items():
        if array.chunked_by_view:
            with findings.at(place, name):
                stored = arrays.open_array(
                    group, name, array, [lengths[a] for a in array.axes.split()]
                )
                digests = attributes["digests"][name]
                _check_views(folder, stored, unit, digests, small.get("valid"), findings, full=full)
    return small


def _check_views(
    folder: Path,
    array: Any,
    unit: layout.UnitId,
    digests: Sequence[str],
    valid_nV: np.ndarray | None,
    findings: Findings,
    *,
    full: bool,
) -> None:
    """Add the problems of each view of an array that is chunked by view."""
    if not isinstance(digests, list) or len(digests) != unit.num_views:
        raise Damaged("its attributes do not hold one digest per view")
    for view, digest in enumerate(digests):
        with findings.at(f"units/{unit.name}", array.basename, unit.first + view):
            if not full:
                arrays.check_chunk_files(folder, array, view)
                continue
            values = arrays.read_view(folder, array, view, digest)
            if array.basename == "targets" and valid_nV is not None:
                _check_vectors(values, valid_nV[:, view])


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
