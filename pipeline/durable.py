"""Files and folders that appear whole or not at all."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import StorageError

# What a file system says when it takes nothing more, from anybody.
_STORAGE_FAULTS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
}
_passages: Counter[str] = Counter()


def fault_point(name: str) -> None:
    """Kill this process if a test asked for it here (BEAMCLIP_FAULT_POINT=name[:count]).

    With a count, the first count-1 passages of this process survive. In place of a count, `hang`
    stops the process from answering, and `crash` ends it as a wild pointer would.
    """
    wanted, _, count = os.environ.get("BEAMCLIP_FAULT_POINT", "").partition(":")
    if wanted != name:
        return
    if count == "hang":
        time.sleep(3600)
    if count == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    _passages[name] += 1
    if _passages[name] >= int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lock file; raises BlockingIOError at once if another process does.

    The kernel drops the lock when its holder dies. Correctness must not rest on it: not every
    network file system keeps it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        # Not flock: a forked loader would inherit that, and hold it on after its parent's death.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def fsync_folder(path: Path) -> None:
    """Make the names inside `path` survive a power cut, as far as the file system promises."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(root: Path) -> None:
    """Flush every file below `root`, then every folder, deepest first."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                os.fsync(file.fileno())
        fsync_folder(Path(folder))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it is flushed and takes the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def publish_folder(temporary: Path, final: Path) -> bool:
    """Rename a finished folder into place; False if another writer's already stands there.

    The loser's copy is dropped: a folder is published once, and never changed after.
    """
    fsync_tree(temporary)
    final.parent.mkdir(parents=True, exist_ok=True)
    fault_point("before-rename")
    try:
        temporary.rename(final)
    except OSError:
        if not final.is_dir():
            raise
        shutil.rmtree(temporary)
        return False
    fault_point("after-rename")
    fsync_folder(final.parent)
    return True


@contextlib.contextmanager
def storing(what: str, place: Path, need_bytes: int = 0) -> Iterator[None]:
    """Raise StorageError, naming path and need, where the file system takes nothing more."""
    try:
        yield
    except OSError as error:
        # numpy's has no number; zarr's for what is not there has none either, but its own type.
        nameless = error.errno is None and type(error) is OSError
        if error.errno not in _STORAGE_FAULTS and not nameless:
            raise
        need = f": {need_bytes / 1e6:.3g} MB before compression" if need_bytes else ""
        raise StorageError(
            f"cannot write {error.filename or place}: {error.strerror or error}. Needed for {what}"
            f"{need}{_free(place)}. What is published is kept: give the cache a disk that takes "
            "it, and run again"
        ) from error


def _free(place: Path) -> str:
    with contextlib.suppress(OSError):
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        return f"; {shutil.disk_usage(there).free / 1e6:.3g} MB are free there"
    return ""


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all; NaN is refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def create_json(path: Path, value: Any) -> None:
    """Write `value` to a file that must not exist yet; raises FileExistsError if it does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike rename, fails if the name is taken
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
