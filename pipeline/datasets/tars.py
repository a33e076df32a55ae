"""Reads the tars of others strictly: by member, or by the key that members share."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.shards import split_name
from pipeline.storage import Readable
from pipeline.tar import walk_tar


def members_of(where: str, file: Readable, size: int | None) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of every regular file; raises ShardError for a damaged tar."""
    for entry in walk_tar(where, file, size):
        yield entry.name, entry.read()


def members_at(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of every regular file of the tar at a path; raises ShardError."""
    with open(path, "rb") as file:
        yield from members_of(str(path), file, path.stat().st_size)


def keys_at(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (key, {extension: content}) of the tar at a path; raises ShardError."""
    last, members = None, dict[str, bytes]()
    for name, content in members_at(path):
        key, extension = split_name(name)
        if key != last and last is not None:
            yield last, members
            members = {}
        last = key
        members[extension] = content
    if last is not None:
        yield last, members
