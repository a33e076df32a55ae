"""Reads WebDataset shards strictly: every member of the tar is accounted for, or it is an error.

`tarfile` and `webdataset` both end quietly at a damaged header. Here the archive is walked block by
block, sums of headers are checked, and nothing but zeros may follow its end.
"""

import glob
import hashlib
import itertools
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline import durable
from pipeline.errors import SampleError, ShardError

SPLITS = ("train", "val", "test")
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
MAX_MEMBER_BYTES = 1 << 30
_BLOCK = 512
_READ_BYTES = 1 << 20
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Shard:
    """One tar on disk. `name` is unique within its split; `path` is where it lies today."""

    split: str
    name: str
    path: Path
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Member:
    """One file of a sample: its content, and where the content begins in the tar."""

    offset: int
    content: bytes


@dataclass(frozen=True)
class Sample:
    """One tar key with its members by lower-case extension; `ordinal` counts from 0 in the tar."""

    ordinal: int
    key: str
    members: Mapping[str, Member]

    def image(self) -> Member:
        """Return the image member; raises SampleError if there is none, or more than one."""
        found = [extension for extension in IMAGE_EXTENSIONS if extension in self.members]
        if len(found) != 1:
            reason = "several-images" if found else "no-image"
            raise SampleError(reason, f"members: {', '.join(self.members) or 'none'}")
        return self.members[found[0]]

    def label(self) -> int:
        """Return the class number of the `.cls` member, or -1 if there is none."""
        if "cls" not in self.members:
            return -1
        text = self.members["cls"].content
        if not re.fullmatch(rb"\s*\d{1,9}\s*", text):
            raise SampleError("bad-label", f".cls holds {text[:40]!r}, not a class number")
        return int(text)


def find_shards(patterns: Sequence[str]) -> list[Shard]:
    """Return the shards that the patterns name, in order of split, then name.

    A pattern is a file, a folder of tars, a glob, a brace range, or `@file` with one pattern per
    line. `SPLIT=pattern` states the split; else the file name does (`train-000003.tar`). Raises
    ShardError naming every missing, empty, compressed or foreign file at once.
    """
    paths = list(itertools.chain.from_iterable(_expand(pattern) for pattern in patterns))
    if not paths:
        raise ShardError(f"no shards: {', '.join(patterns) or 'no pattern given'} matches nothing")
    faults = [fault for _, path in paths if (fault := _fault(path))]
    if faults:
        raise ShardError("\n".join([f"{len(faults)} of {len(paths)} shards:", *faults]))
    shards = [_shard(split, path) for split, path in paths]
    shards.sort(key=lambda shard: (SPLITS.index(shard.split), shard.name))
    for one, other in itertools.pairwise(shards):
        if (one.split, one.name) == (other.split, other.name):
            raise ShardError(
                f"two shards are both {one.split}-{one.name}: {one.path} and {other.path}; "
                "give each file once, under its own name"
            )
    return shards


def read_samples(shard: Shard, digest: "hashlib._Hash | None" = None) -> Iterator[Sample]:
    """Yield every sample of a tar, in order; raises ShardError at the first thing out of order.

    `digest`, if given, is fed every byte of the file: it is complete when the iterator ends.
    """
    with open(shard.path, "rb") as file:
        ordinal, key, members = 0, None, dict[str, Member]()
        seen: set[str] = set()
        for name, member in _read_members(shard.path, file, digest):
            member_key, extension = split_name(name)
            if member_key != key:
                if key is not None:
                    yield Sample(ordinal, key, members)
                    ordinal += 1
                if member_key in seen:
                    raise ShardError(
                        f"{shard.path}: key {member_key!r} appears twice, with other keys between; "
                        "the members of a sample must stand together: write the shard anew"
                    )
                seen.add(member_key)
                key, members = member_key, {}
            if extension in members:
                raise ShardError(f"{shard.path}: member {name!r} appears twice")
            members[extension] = member
        if key is not None:
            yield Sample(ordinal, key, members)


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name into key and lower-case extension, at the base name's first dot."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot:
        return name, ""
    return folder + slash + stem, extension.lower()


def content_digest(content: bytes) -> int:
    """Return the 64-bit blake2b of an encoded image, by which stage two knows it again."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def write_shards(
    samples: Iterable[tuple[str, Mapping[str, bytes]]], folder: Path, split: str, *, per_shard: int
) -> list[Path]:
    """Write (key, {extension: content}) pairs to `split-000000.tar` and on; each appears whole.

    Equal input gives equal bytes: times, owners and modes are fixed.
    """
    from webdataset.writer import TarWriter

    paths: list[Path] = []
    stream = iter(samples)
    for first in stream:
        path = folder / f"{split}-{len(paths):06d}.tar"
        with (
            durable.replacing(path) as temporary,
            open(temporary, "wb") as file,
            TarWriter(file, mtime=0, encoder=False) as writer,
        ):
            for key, members in itertools.chain([first], itertools.islice(stream, per_shard - 1)):
                writer.write({"__key__": key, **members})
        paths.append(path)
    return paths


def _expand(pattern: str) -> list[tuple[str | None, Path]]:
    """Return (split or None, path) for one pattern."""
    from braceexpand import braceexpand

    if pattern.startswith("@"):
        try:
            lines = Path(pattern[1:]).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ShardError(f"cannot read the list of shards {pattern[1:]}: {error}") from None
        inner = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        return list(itertools.chain.from_iterable(_expand(line) for line in inner))
    split, equals, rest = pattern.partition("=")
    if not (equals and split in SPLITS):
        split, rest = "", pattern
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", rest):
        raise ShardError(f"{rest!r} is no path: shards are read from the file system only")
    try:
        names = list(braceexpand(rest))
    except ValueError:
        raise ShardError(f"unbalanced braces in {rest!r}") from None
    return [(split or None, path) for name in names for path in _matches(name)]


def _matches(name: str) -> list[Path]:
    if Path(name).is_dir():
        return sorted(Path(name).glob("*.tar"))
    if glob.has_magic(name) and not Path(name).exists():
        return sorted(Path(found) for found in glob.glob(name))
    return [Path(name)]


def _fault(path: Path) -> str | None:
    """Say what keeps `path` from being a shard, judging by its name and first block."""
    if path.suffix != ".tar":
        return f"  {path}: not a .tar (compressed tars have no offsets: unpack them first)"
    try:
        with open(path, "rb") as file:
            block = file.read(_BLOCK)
    except OSError as error:
        return f"  {path}: {error.strerror}"
    if not block:
        return f"  {path}: empty file (an empty tar has at least {2 * _BLOCK} bytes)"
    if any(block):
        try:
            tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            return f"  {path}: not a tar; it begins {block[:24]!r}"
    return None


def _shard(split: str | None, path: Path) -> Shard:
    name = path.stem
    if split is None:
        split = name.partition("-")[0]
        if split not in SPLITS or split == name:
            raise ShardError(
                f"{path}: its name does not say its split; name it like train-{path.name} "
                f"({', '.join(SPLITS)}), or write SPLIT=PATTERN, as in train={path.parent}/*.tar"
            )
    name = name.removeprefix(f"{split}-")
    if not _NAME.fullmatch(name):
        raise ShardError(f"{path}: a shard's name may hold letters, digits and _ . + - only")
    status = path.stat()
    return Shard(split, name, path, status.st_size, status.st_mtime_ns)


def _read_members(
    path: Path, file: BinaryIO, digest: "hashlib._Hash | None"
) -> Iterator[tuple[str, Member]]:
    """Yield (name, member) for every regular file; raises ShardError unless the end is proper."""
    reader = _Reader(path, file, digest)
    long_name: str | None = None
    long_size: int | None = None
    while (header := reader.header()) is not None:
        size = header.size if long_size is None else long_size
        if not 0 <= size <= MAX_MEMBER_BYTES:
            raise reader.fault(f"member {header.name!r} claims {size} bytes")
        offset = reader.position
        content = reader.exactly(size)
        reader.exactly(-size % _BLOCK)
        if header.type == tarfile.GNUTYPE_LONGNAME:
            long_name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            continue
        if header.type == tarfile.XHDTYPE:
            try:
                records = _pax_records(content)
                long_name = records.get("path", long_name)
                long_size = int(records["size"]) if "size" in records else None
            except ValueError:
                raise reader.fault("bad extended header") from None
            continue
        name, long_name, long_size = long_name or header.name, None, None
        if header.type in _REGULAR:
            yield name, Member(offset, content)
        elif header.type not in (tarfile.DIRTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            raise reader.fault(f"member {name!r} is no regular file (type {header.type!r})")


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
        block = self.exactly(_BLOCK)
        if any(block):
            try:
                return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise self.fault(f"bad header ({error})") from None
        if any(self.exactly(_BLOCK)):
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
        length_text, _, rest = content.partition(b" ")
        length = int(length_text)
        key, equals, value = rest[: length - len(length_text) - 2].partition(b"=")
        if not equals or length > len(content):
            raise ValueError("bad extended header")
        records[key.decode()] = value.decode("utf-8", "surrogateescape")
        content = content[length:]
    return records
