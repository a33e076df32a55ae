"""Finds, reads and writes WebDataset shards: samples are members of a tar that share a key."""

import contextlib
import hashlib
import itertools
import re
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import xxhash

from pipeline import durable, storage
from pipeline.errors import SampleError, ShardError
from pipeline.patterns import SPLITS, expand
from pipeline.tar import BLOCK, Entry, walk_tar

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
TEXT_EXTENSIONS = ("txt", "json")
MAX_IMAGE_BYTES = 64 << 20
MAX_LABEL_BYTES = 4096
MAX_MEMBERS = 10_000  # of one sample
_ASKED_AT_ONCE = 32
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Shard:
    """One tar. `name` is unique within its split; `location` (path or URL) is where it lies today.

    Size and version say which content is meant: a file has `mtime_ns`, an object an `etag`.
    """

    split: str
    name: str
    location: str
    size_bytes: int
    mtime_ns: int | None = None
    etag: str | None = None

    @property
    def path(self) -> Path:
        """The path of a shard in the file system; raises ShardError for any other."""
        if storage.store_of(self.location) is not None:
            raise ShardError(
                f"{self} is no file: this reads at byte offsets, so copy the shards near and give "
                "their paths (their names and bytes must stay as they are)"
            )
        return Path(self.location)

    @property
    def version(self) -> dict[str, int | str]:
        """What a manifest records beside the size: {"mtime_ns": ...} or {"etag": ...}."""
        return {"etag": self.etag} if self.etag is not None else {"mtime_ns": self.mtime_ns or 0}

    def __str__(self) -> str:
        return storage.shown(self.location)


@dataclass(frozen=True)
class Member:
    """One file of a sample: where its content begins in the tar, and the content if it is held."""

    offset: int
    size_bytes: int
    held: bytes | None

    @property
    def content(self) -> bytes:
        """The member's bytes; raises SampleError if they were too many to be held."""
        if self.held is None:
            raise SampleError("too-many-bytes", f"{self.size_bytes} bytes, more than is allowed")
        return self.held


@dataclass(frozen=True)
class Sample:
    """One tar key with its members by lower-case extension; `ordinal` counts from 0 in the tar."""

    ordinal: int
    key: str
    members: Mapping[str, Member]

    @property
    def end(self) -> int:
        """Where the sample's last content ends in the tar."""
        return max(member.offset + member.size_bytes for member in self.members.values())

    def image(self) -> Member:
        """Return the image member; raises SampleError if there is none, or more than one."""
        found = [extension for extension in IMAGE_EXTENSIONS if extension in self.members]
        if len(found) != 1:
            reason = "several-images" if found else "no-image"
            names = ", ".join(itertools.islice(self.members, 20))
            raise SampleError(reason, f"members: {names or 'none'}")
        return self.members[found[0]]

    def label(self) -> int:
        """Return the class number of the `.cls` member, or -1 if there is none."""
        if "cls" not in self.members:
            return -1
        text = self.members["cls"].held
        if text is None or not re.fullmatch(rb"\s*\d{1,9}\s*", text):
            found = f"{self.members['cls'].size_bytes} bytes" if text is None else f"{text[:40]!r}"
            raise SampleError("bad-label", f".cls holds {found}, not a class number")
        return int(text)


def find_shards(patterns: Sequence[str], *, allow: Collection[str] = ()) -> list[Shard]:
    """Return the shards that the patterns name, in order of split, then name.

    A pattern is a file, a folder of tars, a glob, a brace range, or `@file` with one pattern per
    line (relative paths start in the current folder, there too). `SPLIT=pattern` states the split;
    else the file name does (`train-000003.tar`). allow: the stores of `storage.STORES` that shards
    may be read from beside paths, as in {"s3"}. Raises ShardError naming at once every file that is
    missing, empty, compressed or foreign, and every pattern that matches nothing.
    """
    found = list(itertools.chain.from_iterable(expand(pattern, allow) for pattern in patterns))
    if not found:
        raise ShardError("no shards: no pattern was given")
    return shards_at(found)


def shards_at(places: Sequence[tuple[str | None, str | Path]]) -> list[Shard]:
    """Return the shards at (split or None, location), as `find_shards` does for patterns."""
    locations = [str(place) for _, place in places]
    statuses = _statuses(locations)
    faults = [
        f"  {storage.shown(location)}: {status}"
        for location, status in zip(locations, statuses, strict=True)
        if isinstance(status, str)
    ]
    if faults:
        raise ShardError("\n".join([f"{len(faults)} of {len(places)} shards:", *faults]))
    shards = [
        _shard(split, location, status)
        for (split, _), location, status in zip(places, locations, statuses, strict=True)
        if not isinstance(status, str)
    ]
    shards.sort(key=lambda shard: (SPLITS.index(shard.split), shard.name))
    for one, other in itertools.pairwise(shards):
        if (one.split, one.name) == (other.split, other.name):
            raise ShardError(
                f"two shards are both {one.split}-{one.name}: {one} and {other}; "
                "give each file once, under its own name"
            )
    return shards


def sha256_of(shard: Shard) -> str:
    """Read a whole shard; return the sha256 of its bytes. Raises ShardError or OSError."""
    digest = hashlib.sha256()
    with storage.opened(shard.location) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def read_samples(
    shard: Shard,
    digest: "hashlib._Hash | None" = None,
    *,
    max_image_bytes: int = MAX_IMAGE_BYTES,
    max_text_bytes: int = -1,
) -> Iterator[Sample]:
    """Yield every sample of a tar, in order; raises ShardError at the first thing out of order.

    Only one image (of at most `max_image_bytes`) and the label of a sample are held in memory, and
    its texts where the caller asks for them (each of at most `max_text_bytes`); -1 holds none.
    Other members are read over, and no member is interpreted. `digest`, if given, is fed every byte
    of the file: it is complete when the iterator ends. So is the tar, and what it was when it was
    found.
    """
    most = dict.fromkeys(IMAGE_EXTENSIONS, max_image_bytes)
    most |= {**dict.fromkeys(TEXT_EXTENSIONS, max_text_bytes), "cls": MAX_LABEL_BYTES}
    try:
        with storage.opened(shard.location) as file:
            entries = walk_tar(str(shard), file, shard.size_bytes, digest)
            yield from _samples(shard, entries, most)
    except (ShardError, OSError):
        with contextlib.suppress(OSError):
            check_unchanged(shard)
        raise
    check_unchanged(shard)


def check_unchanged(shard: Shard) -> None:
    """Raise ShardError if a shard has another size or version than it was found with; or OSError.

    `read_samples` ends with it.
    """
    wanted = storage.Status(shard.size_bytes, shard.mtime_ns, shard.etag)
    if storage.status(shard.location) != wanted:
        raise ShardError(f"{shard} changed while it was read: run teacher-cache again")


def _samples(shard: Shard, entries: Iterable[Entry], most: Mapping[str, int]) -> Iterator[Sample]:
    """Gather members that share a key; each key's members must stand together.

    most: up to how many bytes a member is held, by extension; one of no other is.
    """
    ordinal, key, members = 0, None, dict[str, Member]()
    seen: set[str] = set()
    for entry in entries:
        member_key, extension = split_name(entry.name)
        if member_key != key:
            if key is not None:
                yield Sample(ordinal, key, members)
                ordinal += 1
            if member_key in seen:
                raise ShardError(
                    f"{shard}: key {member_key[:200]!r} appears twice, with other keys between; "
                    "the members of a sample must stand together: write the shard anew"
                )
            seen.add(member_key)
            key, members = member_key, {}
        if extension in members:
            raise ShardError(f"{shard}: member {entry.name[:200]!r} appears twice")
        if len(members) == MAX_MEMBERS:
            raise ShardError(f"{shard}: key {key[:200]!r} has more than {MAX_MEMBERS} members")
        held = entry.size_bytes <= most.get(extension, -1) and not _is_second(extension, members)
        members[extension] = Member(entry.offset, entry.size_bytes, entry.read() if held else None)
    if key is not None:
        yield Sample(ordinal, key, members)


def _is_second(extension: str, members: Collection[str]) -> bool:
    """Tell whether a member is a further image: only the first is held."""
    return extension in IMAGE_EXTENSIONS and any(name in members for name in IMAGE_EXTENSIONS)


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name into key and lower-case extension, at the base name's first dot."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot:
        return name, ""
    return folder + slash + stem, extension.lower()


def content_digest(content: bytes) -> int:
    """Return the XXH3-64 of an encoded image, by which stage two knows it again.

    It finds damage and other files, not forgery: a cryptographic hash costs 20 times as much.
    """
    return xxhash.xxh3_64_intdigest(content)


def write_shards(
    samples: Iterable[tuple[str, Mapping[str, bytes]]], folder: Path, split: str, *, per_shard: int
) -> list[Path]:
    """Write (key, {extension: content}) pairs to `split-000000.tar` and on; each appears whole.

    Equal input gives equal bytes: times, owners and modes are fixed. Raises ValueError for names
    that would not read back as they were, ShardError for a key that comes twice in a shard.
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
            keys = set[str]()
            for key, members in itertools.chain([first], itertools.islice(stream, per_shard - 1)):
                _check_names(key, members)
                if key in keys:
                    raise ShardError(f"two samples have the key {key!r}: name each otherwise")
                keys.add(key)
                writer.write({"__key__": key, **members})
        paths.append(path)
    return paths


def _check_names(key: str, members: Mapping[str, bytes]) -> None:
    for extension in members or [""]:
        kept = not extension.startswith("_")  # webdataset's writer drops these
        if not kept or split_name(f"{key}.{extension}") != (key, extension) or not extension:
            raise ValueError(f"a member {extension!r} of key {key!r} would not read back")


def _statuses(locations: Sequence[str]) -> list[storage.Status | str]:
    """Return for each location its status, or what keeps it from being a shard."""
    if all(storage.store_of(location) is None for location in locations):
        return [_status(location) for location in locations]
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:  # a store answers in tens of milliseconds
        return list(pool.map(_status, locations))


def _status(location: str) -> storage.Status | str:
    """Judge a location by its name, its size and its first block."""
    try:
        status = storage.status(location)
        if not storage.file_name(location).endswith(".tar"):
            return "not a .tar (compressed tars have no offsets: unpack them first)"
        block = storage.first_bytes(location, BLOCK) if status.size_bytes else b""
    except OSError as error:
        return str(error.strerror)
    if not block:
        return f"empty file (an empty tar has at least {2 * BLOCK} bytes)"
    if any(block):
        try:
            tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            return f"not a tar; it begins {block[:24]!r}"
    return status


def _shard(split: str | None, location: str, status: storage.Status) -> Shard:
    file_name = storage.file_name(location)
    name = file_name.removesuffix(".tar")
    if split is None:
        split = name.partition("-")[0]
        if split not in SPLITS or split == name:
            folder = storage.shown(location).removesuffix(file_name)
            raise ShardError(
                f"{storage.shown(location)}: its name does not say its split; name it like "
                f"train-{file_name} ({', '.join(SPLITS)}), or write SPLIT=PATTERN, as in "
                f"train={folder}*.tar"
            )
    name = name.removeprefix(f"{split}-")
    if not _NAME.fullmatch(name):
        raise ShardError(
            f"{storage.shown(location)}: a shard's name may hold letters, digits and _ . + - only"
        )
    return Shard(split, name, location, status.size_bytes, status.mtime_ns, status.etag)
