"""Builds tars byte by byte, whole and damaged."""

import io
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import ShardError
from pipeline.shards import (
    Sample,
    Shard,
    find_shards,
    read_samples,
)
from pipeline.tar import walk_tar

BLOCK = 512
LONG_KEY = "folder/" + "long-" * 60
NOT_UTF8 = b"caf\xe9-\xff".decode("utf-8", "surrogateescape")
Files = Sequence[tuple[str, bytes]]


def tar_bytes(files: Files, *, format: int = tarfile.GNU_FORMAT) -> bytes:
    """Return an ordinary tar of (name, content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format, errors="surrogateescape") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def member_header(name: str, kind: bytes, size: int = 0, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def ended(*parts: bytes) -> bytes:
    """Close an archive with the two zero blocks that end it."""
    return b"".join(parts) + bytes(2 * BLOCK)


def pax(records: bytes) -> bytes:
    """Return an extended header with these records as its content."""
    return member_header("pax", tarfile.XHDTYPE, len(records)) + padded(records)


def put(folder: Path, content: bytes, name: str = "train-000000.tar") -> Shard:
    path = folder / name
    path.write_bytes(content)
    return find_shards([str(path)])[0]


def shard_at(path: Path) -> Shard:
    """Return a shard without find_shards's first look at it."""
    status = path.stat()
    return Shard("train", path.stem, str(path), status.st_size, status.st_mtime_ns)


def read(shard: Shard) -> list[Sample]:
    return list(read_samples(shard))


def read_all(shard: Shard) -> list[Sample]:
    """Return the samples with the content of every member, as it lies at its offset."""
    tar = shard.path.read_bytes()
    return [
        replace(
            sample,
            members={
                name: replace(m, held=tar[m.offset : m.offset + m.size_bytes])
                for name, m in sample.members.items()
            },
        )
        for sample in read(shard)
    ]


def contents(samples: Sequence[Sample]) -> list[tuple[str, dict[str, bytes | None]]]:
    """Return each key with what is held of its members."""
    return [(s.key, {name: m.held for name, m in s.members.items()}) for s in samples]


def entries(path: Path) -> list[tuple[str, int, bytes]]:
    """Return (name, offset, content) of everything in a tar."""
    with open(path, "rb") as file:
        walk = walk_tar(str(path), file, path.stat().st_size)
        return [(entry.name, entry.offset, entry.read()) for entry in walk]


def refusal(shard: Shard) -> str:
    with pytest.raises(ShardError) as caught:
        read(shard)
    assert str(shard.path) in str(caught.value)
    return str(caught.value)


SMALL: Files = [
    *[(f"{i:03d}.{ext}", bytes([i]) * (150 * i + 17)) for i in range(8) for ext in ("jpg", "cls")],
    ("folder/a.b.txt", b""),
    ("note", b"no extension"),
]
