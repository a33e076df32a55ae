"""Decoded arrays: made once, shared, and never trusted from others or half-written."""

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.cache.scratch import shared_array
from pipeline.errors import CacheError

ROWS = np.arange(24, dtype=np.float16).reshape(8, 3)


def pieces() -> Iterator[np.ndarray]:
    yield ROWS[:5]
    yield ROWS[5:]


def never() -> Iterator[np.ndarray]:
    raise AssertionError("read although the array was there")
    yield


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


def test_an_array_is_written_once_and_mapped_after(scratch: Path) -> None:
    first = shared_array("a0", ROWS.shape, "float16", pieces())
    again = shared_array("a0", ROWS.shape, "float16", never())
    np.testing.assert_array_equal(first, ROWS)
    np.testing.assert_array_equal(again, ROWS)
    assert [path.name for path in scratch.glob("[!.]*")] == ["a0.npy"]


def _share(scratch: str, log: str) -> None:
    os.environ["BEAMCLIP_SCRATCH"] = scratch

    def slow() -> Iterator[np.ndarray]:
        with open(log, "a", encoding="utf-8") as file:
            file.write("decoded\n")
        time.sleep(0.5)
        yield ROWS

    np.testing.assert_array_equal(shared_array("a0", ROWS.shape, "float16", slow()), ROWS)


def test_of_processes_that_want_the_same_array_at_once_one_decodes_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    arguments = (str(tmp_path / "scratch"), str(tmp_path / "log"))
    processes = [context.Process(target=_share, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "log").read_text(encoding="utf-8") == "decoded\n"


def test_no_rows_need_no_file(scratch: Path) -> None:
    assert shared_array("a0", (0, 3), "float16", never()).shape == (0, 3)
    assert not scratch.exists()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"noise" * 100])
def test_a_damaged_file_is_made_anew(scratch: Path, content: bytes) -> None:
    scratch.mkdir()
    (scratch / "a0.npy").write_bytes(content)
    np.testing.assert_array_equal(shared_array("a0", ROWS.shape, "float16", pieces()), ROWS)


def test_a_truncated_file_is_made_anew(scratch: Path) -> None:
    shared_array("a0", ROWS.shape, "float16", pieces())
    file = scratch / "a0.npy"
    file.write_bytes(file.read_bytes()[:-6])
    np.testing.assert_array_equal(shared_array("a0", ROWS.shape, "float16", pieces()), ROWS)


def test_a_folder_that_others_can_write_is_refused(scratch: Path) -> None:
    scratch.mkdir()
    scratch.chmod(0o777)
    with pytest.raises(CacheError, match="can be written by others"):
        shared_array("a0", ROWS.shape, "float16", pieces())


def test_a_source_that_fails_leaves_nothing(scratch: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield ROWS[:5]
        raise CacheError("damaged unit")

    with pytest.raises(CacheError, match="damaged unit"):
        shared_array("a0", ROWS.shape, "float16", broken())
    assert not [path for path in scratch.iterdir() if path.suffix != ".lock"]


def test_a_full_disk_is_an_error_that_names_the_folder(scratch: Path) -> None:
    """The limit on file sizes stands for a full disk; in a child, since it cannot be raised."""
    import resource
    import signal

    reader, writer = os.pipe()
    if os.fork() == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, 150))
        try:
            shared_array("a0", ROWS.shape, "float16", pieces())
        except CacheError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        message = answer.read()
    os.wait()
    assert f"cannot write 48 bytes to {scratch}" in message
    assert "BEAMCLIP_SCRATCH" in message


def test_files_that_come_and_go_meanwhile_disturb_nobody(scratch: Path) -> None:
    """Several loaders write their arrays at once, each by way of a temporary file."""
    ended = threading.Event()

    def come_and_go() -> None:
        while not ended.is_set():
            for number in range(50):
                (scratch / f".{number:032x}.npy").touch()
            for number in range(50):
                (scratch / f".{number:032x}.npy").unlink(missing_ok=True)

    scratch.mkdir(mode=0o700, exist_ok=True)
    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for number in range(200):
            array = np.full((3, 2), number, np.float32)
            found = shared_array(f"{number:x}", (3, 2), "float32", [array])
            assert (found == array).all()
    finally:
        ended.set()
        thread.join()
