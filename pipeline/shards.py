"""Finds, reads and writes WebDataset shards: samples are members of a tar that share a key."""

import glob
import hashlib
import itertools
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import durable
from pipeline.errors import SampleError, ShardError
from pipeline.tar import BLOCK, Member, read_members

SPLITS = ("train", "val", "test")
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_TARS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
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
class Sample:
    """One tar key with its members by lower-case extension; `ordinal` counts from 0 in the tar."""

    ordinal: int
    key: str
    members: Mapping[str, Member]

    @property
    def end(self) -> int:
        """Where the sample's last content ends in the tar."""
        return max(member.offset + len(member.content) for member in self.members.values())

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
    ShardError naming at once every file that is missing, empty, compressed or foreign, and every
    pattern that matches nothing.
    """
    found = list(itertools.chain.from_iterable(_expand(pattern) for pattern in patterns))
    if not found:
        raise ShardError("no shards: no pattern was given")
    return shards_at(found)


def shards_at(paths: Sequence[tuple[str | None, Path]]) -> list[Shard]:
    """Return the shards at (split or None, path), as `find_shards` does for patterns."""
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
        for name, member in read_members(shard.path, file, digest):
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

    Equal input gives equal bytes: times, owners and modes are fixed. Raises ValueError for names
    that would not read back as they were.
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
                _check_names(key, members)
                writer.write({"__key__": key, **members})
        paths.append(path)
    return paths


def _check_names(key: str, members: Mapping[str, bytes]) -> None:
    for extension in members or [""]:
        kept = not extension.startswith("_")  # webdataset's writer drops these
        if not kept or split_name(f"{key}.{extension}") != (key, extension) or not extension:
            raise ValueError(f"a member {extension!r} of key {key!r} would not read back")


def _expand(pattern: str, lists: tuple[str, ...] = ()) -> list[tuple[str | None, Path]]:
    """Return (split or None, path) for one pattern, found in the `lists` that led to it."""
    from braceexpand import braceexpand

    split, equals, rest = pattern.partition("=")
    if not (equals and split in SPLITS):
        split, rest = "", pattern
    if rest.startswith("@"):
        inner = (_expand(line, (*lists, rest)) for line in _lines(rest, lists))
        return [(own or split or None, path) for own, path in itertools.chain.from_iterable(inner)]
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", rest):
        raise ShardError(f"{rest!r} is no path: shards are read from the file system only")
    try:
        names = list(braceexpand(rest))
    except ValueError:
        raise ShardError(f"unbalanced braces in {rest!r}") from None
    return [(split or None, path) for name in names for path in _matches(name)]


def _lines(name: str, lists: tuple[str, ...]) -> list[str]:
    """Return the patterns in the list `name` (with its @)."""
    if name in lists:
        raise ShardError(f"the list of shards {name[1:]} names itself")
    try:
        lines = [line.strip() for line in Path(name[1:]).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ShardError(f"cannot read the list of shards {name[1:]}: {error}") from None
    patterns = [line for line in lines if line and not line.startswith("#")]
    if not patterns:
        raise ShardError(f"the list of shards {name[1:]} is empty")
    return patterns


def _matches(name: str) -> list[Path]:
    """Return the tars that a name without braces stands for; itself if there are none."""
    found: list[Path] = []
    if os.path.isdir(name):
        found = [path for path in Path(name).glob("*") if path.name.endswith(_TARS)]
    elif glob.has_magic(name) and not os.path.exists(name):
        found = [Path(path) for path in glob.glob(name)]
    return sorted(found) or [Path(name)]


def _fault(path: Path) -> str | None:
    """Say what keeps `path` from being a shard, judging by its name and first block."""
    if os.path.isdir(path):
        return f"  {path}: a folder without any .tar"
    if not os.path.exists(path):
        return f"  {path}: No such file"
    if not os.path.isfile(path):
        return f"  {path}: not a file"
    if path.suffix != ".tar":
        return f"  {path}: not a .tar (compressed tars have no offsets: unpack them first)"
    try:
        with open(path, "rb") as file:
            block = file.read(BLOCK)
    except OSError as error:
        return f"  {path}: {error.strerror}"
    if not block:
        return f"  {path}: empty file (an empty tar has at least {2 * BLOCK} bytes)"
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
