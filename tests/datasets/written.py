"""Reads what was written as shards."""

from hashlib import sha256
from pathlib import Path

from pipeline.shards import Sample, find_shards
from tests.tars import read_all


def read(folder: Path) -> dict[str, list[Sample]]:
    """Return the samples of each split."""
    samples: dict[str, list[Sample]] = {}
    for shard in find_shards([str(folder)]):
        samples.setdefault(shard.split, []).extend(read_all(shard))
    return samples


def digests(paths: list[Path]) -> list[str]:
    return [f"{path.name} {sha256(path.read_bytes()).hexdigest()}" for path in paths]
