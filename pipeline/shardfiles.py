"""Shards as open files: those of an object store are brought near whole, a few at a time.

Copies lie in the scratch folder, shared by all processes of a machine, and the ones brought first
make room for others.
"""

import contextlib
import os
import resource
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline import durable, storage
from pipeline.cache.scratch import scratch_folder, turn
from pipeline.errors import ShardError
from pipeline.shards import Shard

BYTES_VARIABLE = "BEAMCLIP_SHARD_SCRATCH_BYTES"  # the most that copies may take, unless one is more
_MOST_BYTES = 64 << 30
_PIECE_BYTES = 4 << 20
_AT_ONCE = 4  # shards that a process brings ahead


class ShardFiles:
    """The shards of a split by number; `descriptor` opens what is not open."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = tuple(shards)
        self._open: dict[int, int] = {}
        self._ahead: ThreadPoolExecutor | None = None
        self._expected: set[int] = set()

    @property
    def any_remote(self) -> bool:
        """Whether some shard is no file."""
        return any(storage.store_of(shard.location) for shard in self._shards)

    def name(self, number: int) -> str:
        """Return what messages call a shard."""
        return str(self._shards[number])

    def descriptor(self, number: int) -> int:
        """Return a shard's file descriptor; with too many open, the one opened first makes room.

        Raises OSError, ShardError if the shard has changed since it was asked for.
        """
        if number not in self._open:
            # A random order visits every shard; a process may often open no more than 1,024 files.
            most = max(8, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
            if len(self._open) >= most:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[number] = self._opened(self._shards[number])
        return self._open[number]

    def expect(self, numbers: Iterable[int]) -> None:
        """Begin to bring shards that will be asked for; what fails is told when they are."""
        for number in numbers:
            remote = storage.store_of(self._shards[number].location) is not None
            if not remote or number in self._open or number in self._expected:
                continue
            self._expected.add(number)
            if self._ahead is None:
                self._ahead = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="bring")
            self._ahead.submit(bring, self._shards[number])

    def _opened(self, shard: Shard) -> int:
        if storage.store_of(shard.location) is None:
            return os.open(shard.location, os.O_RDONLY)
        while True:
            path = bring(shard)
            with contextlib.suppress(FileNotFoundError):  # another process made room meanwhile
                return os.open(path, os.O_RDONLY)

    def __getstate__(self) -> Mapping[str, Any]:
        return {**self.__dict__, "_open": {}, "_ahead": None, "_expected": set()}

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


def bring(shard: Shard) -> Path:
    """Return a copy of an object, made unless it is there; raises OSError, ShardError.

    Of several processes that ask for it, one brings it and the others wait.
    """
    folder = scratch_folder() / "shards"
    folder.mkdir(mode=0o700, exist_ok=True)
    known = f"{shard.location}\n{shard.size_bytes}\n{shard.etag}"
    path = folder / f"{sha256(known.encode()).hexdigest()[:32]}.tar"
    with turn(path.with_name(f".{path.stem}.lock")):
        if not path.exists():
            _download(shard, path)
            _make_room(path)
    return path


def _download(shard: Shard, path: Path) -> None:
    with durable.replacing(path) as temporary:
        with storage.opened(shard.location) as source, open(temporary, "wb") as file:
            while piece := source.read(_PIECE_BYTES):
                file.write(piece)
        wanted = storage.Status(shard.size_bytes, etag=shard.etag)
        size = temporary.stat().st_size
        if size != shard.size_bytes or storage.status(shard.location) != wanted:
            raise ShardError(f"{shard} changed while it was brought near: run again")


def _make_room(keep: Path) -> None:
    """Drop the copies that were brought first while all of them are over the bound."""
    bound = int(os.environ.get(BYTES_VARIABLE, _MOST_BYTES))
    found = []
    for path in keep.parent.glob("*.tar"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= bound or path == keep:
            return
        path.unlink(missing_ok=True)  # whoever has it open keeps it
        total -= size
