"""Where shards lie: paths, and the object stores that fsspec knows. Read here, never written.

A location is a path or a URL such as s3://bucket/train-000000.tar. Nothing here starts a shell:
what is no path and none of STORES is refused.
"""

import contextlib
import errno
import glob
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, cast
from urllib.parse import urlsplit

from pipeline.errors import ShardError

# What fsspec needs beside itself to read from each.
STORES: Mapping[str, str] = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
}
TARS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_READ_AHEAD_BYTES = 4 << 20  # one such block is read while the one before it is worked on
_BLOCKS_KEPT = 3
_LISTED = ("s3", "gs", "gcs", "az", "abfs", "hf")  # stores whose keys can be listed
# What stores call that which changes with an object's content, the most exact first.
_VERSION_FIELDS = (
    *("ETag", "etag", "blob_id", "md5Hash", "Content-MD5"),
    *("Last-Modified", "LastModified", "last_modified", "mtime"),
)


class Readable(Protocol):
    """What a tar is read from."""

    def read(self, count: int, /) -> bytes: ...


@dataclass(frozen=True)
class Status:
    """What tells one content of a location from another without reading it."""

    size_bytes: int
    mtime_ns: int | None = None  # of a file
    etag: str | None = None  # of an object: its ETag, or the store's nearest thing to it


def store_of(location: str) -> str | None:
    """Return the scheme of a URL, or None for a path (a path with a colon begins with ./ or /)."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", location)
    return scheme[1].lower() if scheme else None


def check_allowed(location: str, allowed: Collection[str]) -> None:
    """Raise ShardError unless `location` is a path, or in a store that reading is allowed from."""
    store = store_of(location)
    if store is None:
        return
    if store == "file":
        path = location.partition(":")[2].removeprefix("//")
        raise ShardError(f"{location!r} is no path: write {path!r} instead")
    if store not in STORES or "::" in location or not location[len(store) :].startswith("://"):
        raise ShardError(
            f"{location!r} is no path, and no URL of a known store ({', '.join(STORES)}); "
            "commands and other schemes are never run"
        )
    if store not in allowed:
        raise ShardError(
            f"{shown(location)!r} is no path. teacher-cache and train-student read from {store} "
            f"if they are allowed to: add --allow {store}. All else reads files: copy the shards "
            "near and give their paths"
        )


def shown(location: str) -> str:
    """Return a location as messages name it: without a URL's query, which may hold a signature."""
    store = store_of(location)
    return location.partition("?")[0] if store and store.startswith("http") else location


def file_name(location: str) -> str:
    """Return the last part of a location."""
    return PurePosixPath(urlsplit(location).path if store_of(location) else location).name


def absolute(location: str) -> str:
    """Return a location that means the same from any folder."""
    return location if store_of(location) else str(Path(location).absolute())


def matches(name: str) -> list[str]:
    """Return the locations that a glob or a folder of tars stands for; `name` if there are none.

    Raises OSError if a store cannot be asked.
    """
    if store_of(name) is None:
        found: list[Path] = []
        if os.path.isdir(name):
            found = [path for path in Path(name).glob("*") if path.name.endswith(TARS)]
        elif glob.has_magic(name) and not os.path.exists(name):
            found = [Path(path) for path in glob.glob(name)]
        return [str(path) for path in sorted(found)] or [str(Path(name))]
    if store_of(name) not in _LISTED or (name.endswith(TARS) and not glob.has_magic(name)):
        return [name]
    pattern = name if glob.has_magic(name) else f"{name.rstrip('/')}/*"
    with _told(name):
        store, path = _store(pattern)
        keys = [str(key) for key in store.glob(path)]
    urls = sorted(f"{store_of(name)}://{key}" for key in keys if key.endswith(TARS))
    return urls or [name]


def status(location: str) -> Status:
    """Ask for a location's size and version; raises OSError whose strerror says what is wrong."""
    if store_of(location) is None:
        try:
            found = os.stat(location)
        except (FileNotFoundError, ValueError):  # no file's name holds a zero byte
            raise FileNotFoundError(errno.ENOENT, "No such file", location) from None
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, "a folder without any .tar", location)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a file", location)
        return Status(found.st_size, mtime_ns=found.st_mtime_ns)
    with _told(location):
        store, path = _store(location)
        info = store.info(path)
    if info.get("type") == "directory":
        raise IsADirectoryError(errno.EISDIR, "a folder without any .tar", location)
    version = next((info[field] for field in _VERSION_FIELDS if info.get(field)), None)
    if info.get("size") is None or version is None:
        what = "the server tells no size" if version else "the server tells neither ETag nor time"
        raise OSError(errno.EINVAL, f"{what}: copy the shard near", location)
    return Status(int(info["size"]), etag=str(version).strip('"'))


def first_bytes(location: str, count: int) -> bytes:
    """Read the beginning of a file or an object; raises OSError."""
    if store_of(location) is None:
        with open(location, "rb") as file:
            return file.read(count)
    with _told(location):
        store, path = _store(location)
        return bytes(store.cat_file(path, start=0, end=count))


def beside(location: str, name: str) -> str:
    """Return the location of the file `name` in the folder of another."""
    if store_of(location) is None:
        return str(Path(location).with_name(name))
    plain = shown(location)
    return plain.removesuffix(file_name(plain)) + name


def read_if_there(location: str) -> bytes | None:
    """Return a small file's content, or None without one; raises OSError.

    A web server is not asked: it may answer anything to anything.
    """
    if store_of(location) is None:
        return Path(location).read_bytes() if os.path.isfile(location) else None
    if store_of(location) not in _LISTED:
        return None
    try:
        with _told(location):
            store, path = _store(location)
            return bytes(store.cat_file(path))
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def opened(location: str) -> Iterator[Readable]:
    """Open a location to be read from its first byte to its last; raises OSError.

    An object is read ahead, in blocks, by a thread; what fails is tried again by the store's own
    package. Reading raises ShardError if that does not help.
    """
    if store_of(location) is None:
        with open(location, "rb") as file:
            yield file
        return
    with _told(location):
        store, path = _store(location)
        remote = store.open(
            path,
            "rb",
            block_size=_READ_AHEAD_BYTES,
            cache_type="background",
            cache_options={"maxblocks": _BLOCKS_KEPT},
        )
    with contextlib.closing(remote):
        yield _Object(location, cast(BinaryIO, remote))


class _Object:
    """An object that is being read; says which one it was if reading fails."""

    def __init__(self, location: str, file: BinaryIO) -> None:
        self._location, self._file = location, file

    def read(self, count: int, /) -> bytes:
        try:
            with _told(self._location):
                return self._file.read(count)
        except OSError as error:
            raise ShardError(
                f"{shown(self._location)}: reading stopped ({error.strerror}); run again, "
                "it goes on with what is missing"
            ) from None


def _store(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, which remembers no listing, and the path in it."""
    scheme = store_of(url) or ""
    assert scheme in STORES, "check_allowed comes first"
    try:
        from fsspec.core import url_to_fs

        store, path = url_to_fs(url)
    except ImportError:
        extra = "beamclip[s3]" if scheme == "s3" else STORES[scheme]
        raise ShardError(
            f"{shown(url)}: to read from {scheme}, install {STORES[scheme]}: pip install '{extra}'"
        ) from None
    store.invalidate_cache()
    return store, str(path)


@contextlib.contextmanager
def _told(location: str) -> Iterator[None]:
    """Turn whatever a store raises into an OSError that names the object and says what it was."""
    try:
        yield
    except ShardError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "No such object", shown(location)) from None
    except Exception as error:  # stores, their clients and event loops raise many kinds
        reason = re.sub(r"\?[^\s'\"]*", "?...", f"{type(error).__name__}: {error}")[:300]
        raise OSError(errno.EIO, reason, shown(location)) from None
