"""Arrays decoded once per machine, in a scratch folder whose memory maps all processes share."""

import contextlib
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from pipeline import durable
from pipeline.errors import CacheError

SCRATCH_VARIABLE = "BEAMCLIP_SCRATCH"
_MOST_BYTES = 16 << 30
_STALE_SECONDS = 24 * 3600
_POLL_SECONDS = 0.05
_threads: dict[Path, threading.Lock] = {}


def shared_array(
    name: str, shape: tuple[int, int], dtype: str, pieces: Iterable[np.ndarray]
) -> np.ndarray:
    """Return the array called `name` as a memory map, written from `pieces` if it is not there.

    name: tells the content (a digest), so that nothing is ever overwritten by something else.
    pieces: consecutive rows, together `shape`; read only when needed. Raises CacheError if the
    scratch folder is full or not this user's own.
    """
    if shape[0] == 0:
        return np.empty(shape, dtype)
    path = scratch_folder() / f"{name}.npy"
    found = _load(path, shape, dtype)
    if found is None:
        with turn(path.with_name(f".{name}.lock")):  # one decodes, the others wait for it
            found = _load(path, shape, dtype)
            if found is None:
                _write(path, shape, dtype, pieces)
                _evict(path)
                found = _load(path, shape, dtype)
    if found is None:
        raise CacheError(f"{path}: what was just written cannot be read; is the disk whole?")
    return found


@contextlib.contextmanager
def turn(lock: Path) -> Iterator[None]:
    """Wait until no other process or thread holds the lock, then hold it.

    It saves work, and nothing hangs on it: where no lock can be had, the block runs without.
    """
    with contextlib.ExitStack() as stack:
        # The file's lock is a process's: its threads would all have it.
        stack.enter_context(_threads.setdefault(lock, threading.Lock()))
        while True:
            try:
                stack.enter_context(durable.held(lock))
                break
            except BlockingIOError:
                time.sleep(_POLL_SECONDS)
            except OSError:  # a full disk, or a file system without locks
                break
        yield


def _load(path: Path, shape: tuple[int, int], dtype: str) -> np.ndarray | None:
    """Map a file that is whole and as expected, else None."""
    try:
        found: np.ndarray = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == dtype else None


def _write(path: Path, shape: tuple[int, int], dtype: str, pieces: Iterable[np.ndarray]) -> None:
    temporary = path.with_name(f".{uuid.uuid4().hex}.npy")
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    try:
        # Written, not mapped: on a full disk a write is an error, a mapped page a dead process.
        with open(temporary, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for piece in pieces:
                file.write(np.ascontiguousarray(piece, dtype).data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        need = shape[0] * shape[1] * np.dtype(dtype).itemsize
        raise CacheError(
            f"cannot write {need:,} bytes to {path.parent} ({error.strerror}): make room, or name "
            f"another folder in {SCRATCH_VARIABLE}"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def scratch_folder() -> Path:
    """Return $BEAMCLIP_SCRATCH, or a folder of this user's in the system's temporary one.

    Raises CacheError if it is not this user's own.
    """
    default = Path(tempfile.gettempdir()) / f"beamclip-{os.getuid()}"
    folder = Path(os.environ.get(SCRATCH_VARIABLE) or default)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise CacheError(
            f"{folder} can be written by others, and training would trust what lies there: name a "
            f"folder of your own in {SCRATCH_VARIABLE} (chmod go-w)"
        )
    return folder


def _evict(keep: Path) -> None:
    """Drop the least recently made arrays while the folder is over its bound, and old leftovers."""
    for file, status in _listed(keep.parent, ".*.npy"):  # of processes that were killed
        if time.time() - status.st_mtime > _STALE_SECONDS:
            file.unlink(missing_ok=True)
    files = sorted(_listed(keep.parent, "[0-9a-f]*.npy"), key=lambda item: item[1].st_mtime)
    total = sum(status.st_size for _, status in files)
    for file, status in files:
        if total <= _MOST_BYTES or file == keep:
            return
        total -= status.st_size
        file.unlink(missing_ok=True)  # readers that mapped it keep their pages


def _listed(folder: Path, pattern: str) -> list[tuple[Path, os.stat_result]]:
    """Return files with their status, without those that another process takes away meanwhile."""
    found = []
    for file in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            found.append((file, file.stat()))
    return found
