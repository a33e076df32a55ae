"""Reads the captions of a split's shards, which must be those that a cache was made from."""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import runtime
from pipeline.captions import MAX_TEXT_BYTES, captions_of
from pipeline.errors import CacheError, CacheMismatchError, DataError
from pipeline.manifest import published_units
from pipeline.options import differences, nearest
from pipeline.shards import Shard, read_samples

_SHOWN = 20  # samples that are logged
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldShard:
    """A shard, and what the units made from it say of its content."""

    shard: Shard
    size_bytes: int
    sha256: str

    def as_mapping(self) -> dict[str, Any]:
        """Return what a set of captions records of it."""
        return {"name": self.shard.name, "bytes": self.size_bytes, "sha256": self.sha256}


@dataclass
class Collected:
    """The captions of shards in order, and the sample of each: (place of its shard, ordinal).

    read: samples, with captions or without. left_out: texts that could not be taken, by reason.
    """

    shards: Sequence[HeldShard]
    texts: list[str] = field(default_factory=list)
    samples: list[tuple[int, int]] = field(default_factory=list)
    read: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def counts(self) -> dict[str, int]:
        """Samples read, samples with a caption, captions."""
        captioned = len(set(self.samples))
        return {"samples": self.read, "captioned": captioned, "captions": len(self.texts)}


def held_shards(
    cache: Path, manifest: Mapping[str, Any], split: str, shards: Sequence[Shard]
) -> list[HeldShard]:
    """Return every shard of a split, in the manifest's order.

    shards: those that are given, of any split. Raises CacheError if there is no such split or a
    shard of it has no unit yet, CacheMismatchError unless the shards of the split are all given, no
    other, and of the size that the units saw.
    """
    if split not in manifest["splits"]:
        raise CacheError(f"{cache} has no split {split!r}: {nearest(split, manifest['splits'])}")
    names = [shard["name"] for shard in manifest["splits"][split]["shards"]]
    units = published_units(cache, manifest)
    seen = {unit.shard: shard for unit, shard in units.items() if unit.split == split}
    if waiting := [name for name in names if name not in seen]:
        raise CacheError(
            f"{cache}: shard {split}-{waiting[0]} has no unit yet; let teacher-cache finish first"
        )
    given = {shard.name: shard for shard in shards if shard.split == split}
    changed = differences(
        {f"{split}-{name}": {"bytes": seen[name]["bytes"]} for name in names},
        {f"{split}-{name}": {"bytes": shard.size_bytes} for name, shard in given.items()},
    )
    if changed:
        raise CacheMismatchError(
            f"the shards of split {split} are not those that {cache} was made from; give all of "
            "those, as they were:",
            changed,
        )
    return [HeldShard(given[name], seen[name]["bytes"], seen[name]["sha256"]) for name in names]


def collect_captions(shards: Sequence[HeldShard]) -> Collected:
    """Read every caption of the shards; a text that cannot be taken is counted, and named in a log.

    Raises CacheMismatchError for a shard that is not what its units saw, DataError if there is no
    caption at all.
    """
    collected = Collected(shards)
    with runtime.progress("reading captions", len(shards), "shards") as advance:
        for place in range(len(shards)):
            _collect(collected, place)
            advance(1)
    if not collected.texts:
        raise DataError(
            f"none of {collected.read} samples has a caption: expected a .txt, or a .json with "
            "`caption` or `captions`, beside the image"
        )
    return collected


def _collect(collected: Collected, place: int) -> None:
    """Read one shard."""
    held, digest = collected.shards[place], hashlib.sha256()
    for sample in read_samples(
        held.shard, digest, max_image_bytes=-1, max_text_bytes=MAX_TEXT_BYTES
    ):
        found = captions_of(sample.members)
        collected.texts += found.texts
        collected.samples += [(place, sample.ordinal)] * len(found.texts)
        collected.read += 1
        for reason in found.left_out:
            collected.left_out[reason] += 1
            if collected.left_out.total() <= _SHOWN:
                _log.warning("%s: %r: a text is left out: %s", held.shard, sample.key, reason)
    if digest.hexdigest() != held.sha256:
        name = f"{held.shard.split}-{held.shard.name}"
        raise CacheMismatchError(
            f"{held.shard} is not the shard that the cache was made from:",
            [(f"{name}.sha256", held.sha256, digest.hexdigest())],
        )
