"""Checks a cache's captions: arrays, sums, and that they tell of samples that its units have.

Shape letters: K captions, D dimension of what embedded them.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.audit.arrays import StoredGroup
from pipeline.audit.findings import Damaged, Findings, told
from pipeline.audit.units import Attributes
from pipeline.cache import layout

AGAIN = "remove its folder, and `beamclip captions add` it again"
# Attributes of a unit of each planned shard, by (split, name); None if no unit can be read.
Shards = Mapping[tuple[str, str], Attributes | None]


def check_captions(
    folder: Path, manifest: Mapping[str, Any], shards: Shards, findings: Findings
) -> None:
    """Add every problem of one set of captions; manifest: the newest."""
    place = f"captions/{folder.name}"
    with findings.at(place):
        attributes = read_caption_attributes(folder)
        if attributes["teacher"] != layout.teacher_digest(manifest["teacher"]):
            findings.add(place, "was embedded by another teacher")
        for fault in _shard_faults(attributes, shards):
            findings.add(place, fault)
        encoder = attributes.get("encoder")
        if encoder is not None and layout.reads_text(manifest):
            findings.add(place, f"was embedded by a text encoder, not by the teacher: {AGAIN}")
        dim = _dim(manifest, encoder)
        lengths = {"K": attributes["counts"]["captions"], "D": dim, "2": 2}
        stored = StoredGroup(folder, layout.CAPTION_ARRAYS, lengths, attributes["digests"])
        for array in layout.CAPTION_ARRAYS:
            with findings.at(place, array):
                values = stored.read(array)
                if array == "samples":
                    _check_samples(values, attributes, shards)


def _dim(manifest: Mapping[str, Any], encoder: Mapping[str, Any] | None) -> int:
    """Return the size of an embedding; 0 where neither teacher nor text encoder made any."""
    if encoder is not None:
        return int(encoder["dim"])
    return int(manifest["teacher"]["dim"]) if layout.reads_text(manifest) else 0


def read_caption_attributes(folder: Path) -> Attributes:
    """Return the attributes of a set of captions; raises Damaged unless all of them are there."""
    try:
        text = (folder / "zarr.json").read_text(encoding="utf-8")
        attributes = dict(json.loads(text)["attributes"])
        counts, shards = dict(attributes["counts"]), list(attributes["shards"])
        numbers = [counts["samples"], counts["captioned"], counts["captions"]]
        numbers += [shard["bytes"] for shard in shards]
        texts = [attributes["name"], attributes["split"], attributes["teacher"]]
        texts += [shard[name] for shard in shards for name in ("name", "sha256")]
        if (encoder := attributes.get("encoder")) is not None:
            numbers += [encoder[name] for name in ("dim", "layers", "max_tokens")]
            texts += [encoder[name] for name in ("model", "weights_sha256", "tokens_sha256")]
            texts.append(encoder["pooling"])
        _ = dict(attributes["digests"]), dict(attributes["left_out"]), list(attributes["cuts"])
    except Exception as error:  # garbage is no JSON, or JSON of any shape
        raise Damaged(f"its zarr.json is damaged ({told(error)}): {AGAIN}") from None
    if not all(isinstance(n, int) for n in numbers) or not all(isinstance(t, str) for t in texts):
        raise Damaged(f"its zarr.json is damaged (a number or a text is none): {AGAIN}")
    if attributes["name"] != folder.name:
        raise Damaged(f"holds the captions {attributes['name']}: {AGAIN}")
    return attributes


def _shard_faults(attributes: Attributes, shards: Shards) -> Iterator[str]:
    """Say which shards are not those that the cache's units were made from."""
    for shard in attributes["shards"]:
        place = attributes["split"], shard["name"]
        unit = shards.get(place)
        if place not in shards:
            yield f"tells of shard {'-'.join(place)}, which the manifest lacks: {AGAIN}"
        elif unit is not None and unit["shard"] != shard:
            yield f"read another content of shard {'-'.join(place)} than its units: {AGAIN}"


def _check_samples(samples_K2: np.ndarray, attributes: Attributes, shards: Shards) -> None:
    """Raise Damaged unless every caption is of a sample that its shard has, and counts add up."""
    units = [shards.get((attributes["split"], shard["name"])) for shard in attributes["shards"]]
    counts, known = attributes["counts"], all(unit is not None for unit in units)
    rows = np.array([unit["counts"]["seen"] if unit else np.iinfo(np.int64).max for unit in units])
    places_K, ordinals_K = samples_K2[:, 0], samples_K2[:, 1]
    if not np.all((places_K >= 0) & (places_K < len(rows)) & (ordinals_K >= 0)):
        raise Damaged("a caption is of no shard")
    if np.any(ordinals_K >= rows[places_K]):
        raise Damaged("a caption is of a sample that its shard does not have")
    captioned = len(np.unique(samples_K2, axis=0))
    if captioned != counts["captioned"] or (known and rows.sum() != counts["samples"]):
        raise Damaged("its counts do not add up")
