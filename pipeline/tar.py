"""Walks a tar strictly: every member is accounted for, or it is an error.

`tarfile` and `webdataset` both end quietly at a damaged header. Here the archive is read block by
block, the sums of headers are checked, and nothing but zeros may follow its end.
"""

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ShardError

BLOCK = 512
MAX_MEMBER_BYTES = 1 << 30
_READ_BYTES = 1 << 20
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_NAMES_NEXT = (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE)
_IGNORED = (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK)


@dataclass(frozen=True)
class Member:
    """One file of a sample: its content, and where the content begins in the tar."""

    offset: int
    content: bytes


def read_members(
    path: Path, file: BinaryIO, digest: "hashlib._Hash | None"
) -> Iterator[tuple[str, Member]]:
    """Yield (name, member) for every regular file; raises ShardError unless the end is proper."""
    reader = _Reader(path, file, digest)
    next_name: str | None = None  # told by an extended header before the member's own
    next_size: int | None = None
    while (header := reader.header()) is not None:
        name = next_name or header.name
        if header.type not in (*_REGULAR, *_NAMES_NEXT, *_IGNORED, tarfile.DIRTYPE):
            raise reader.fault(f"member {name!r} is no regular file (type {header.type!r})")
        size = header.size if next_size is None else next_size
        if header.type == tarfile.DIRTYPE:
            size = 0  # whatever it states, nothing follows
        if not 0 <= size <= MAX_MEMBER_BYTES:
            raise reader.fault(f"member {name!r} claims {size} bytes")
        offset = reader.position
        content = reader.exactly(size)
        reader.exactly(-size % BLOCK)
        if header.type == tarfile.GNUTYPE_LONGNAME:
            next_name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif header.type == tarfile.XHDTYPE:
            try:
                records = _pax_records(content)
                next_name = records.get("path", next_name)
                next_size = int(records["size"]) if "size" in records else None
            except ValueError:
                raise reader.fault("bad extended header") from None
            if any(key.startswith("GNU.sparse.") for key in records):
                raise reader.fault("a sparse member, whose bytes do not lie together")
        elif header.type not in _IGNORED:
            next_name, next_size = None, None
            if header.type in _REGULAR:
                yield name, Member(offset, content)
    if next_name is not None or next_size is not None:
        raise reader.fault("an extended header without its member")


class _Reader:
    """Reads blocks of a tar, counting and hashing what it reads."""

    def __init__(self, path: Path, file: BinaryIO, digest: "hashlib._Hash | None") -> None:
        self.path, self.file, self.digest, self.position = path, file, digest, 0

    def fault(self, what: str) -> ShardError:
        return ShardError(
            f"{self.path}: {what}, near byte {self.position}; "
            "the tar is damaged or incomplete: fetch or write it again"
        )

    def exactly(self, count: int) -> bytes:
        pieces = []
        while count:
            piece = self.file.read(min(count, _READ_BYTES))
            if not piece:
                raise self.fault(f"the file ends {count} bytes too early")
            if self.digest is not None:
                self.digest.update(piece)
            pieces.append(piece)
            self.position += len(piece)
            count -= len(piece)
        return b"".join(pieces)

    def header(self) -> tarfile.TarInfo | None:
        """Return the next header, or None at a proper end: two zero blocks, then only zeros."""
        block = self.exactly(BLOCK)
        if any(block):
            try:
                return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise self.fault(f"bad header ({error})") from None
        if any(self.exactly(BLOCK)):
            raise self.fault("a lone zero block inside the archive")
        while rest := self.file.read(_READ_BYTES):
            if self.digest is not None:
                self.digest.update(rest)
            if any(rest):
                raise self.fault("data after the end of the archive")
            self.position += len(rest)
        return None


def _pax_records(content: bytes) -> dict[str, str]:
    """Parse the "length key=value" records of an extended header; raises ValueError."""
    records = {}
    while content:
        length_text, _, _ = content.partition(b" ")
        length = int(length_text)
        record, content = content[:length], content[length:]
        key, equals, value = record[len(length_text) + 1 : -1].partition(b"=")
        if length < 1 or len(record) != length or not equals or not record.endswith(b"\n"):
            raise ValueError("bad extended header")
        records[key.decode()] = value.decode("utf-8", "surrogateescape")
    return records
