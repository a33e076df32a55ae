"""Files and folders appear whole or not at all."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline import durable
from pipeline.errors import StorageError


def run_python(code: str, fault_point: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh process that is to die at a fault point."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "BEAMCLIP_FAULT_POINT": fault_point},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def make_folder(path: Path, content: str) -> Path:
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "file").write_text(content)
    return path


def fail_halfway(temporary: Path) -> None:
    temporary.write_text("half")
    raise RuntimeError("stopped")


def test_replacing_takes_the_place_of_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file"
    for content in ("one", "two"):
        with durable.replacing(path) as temporary:
            assert temporary.parent == path.parent  # a rename within one file system
            temporary.write_text(content)
        assert path.read_text() == content
    assert list(path.parent.iterdir()) == [path]


def test_replacing_keeps_the_old_file_when_the_writer_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="stopped"), durable.replacing(path) as temporary:
        fail_halfway(temporary)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_makes_nothing_when_the_first_write_fails(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="stopped"),
        durable.replacing(tmp_path / "file") as temporary,
    ):
        fail_halfway(temporary)
    assert list(tmp_path.iterdir()) == []


def test_text_that_cannot_be_written_leaves_the_old(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.write_text(path, "old ä")
    with pytest.raises(UnicodeEncodeError):
        durable.write_text(path, "\ud800")
    assert path.read_bytes() == "old ä".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_readable_and_refuses_nan(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    durable.write_json(path, {"a": [1, 2.5, None]})
    with pytest.raises(ValueError, match="JSON"):
        durable.write_json(path, {"a": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        durable.create_json(tmp_path / "other.json", {"a": float("inf")})
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None]}
    assert list(tmp_path.iterdir()) == [path]


def test_create_json_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "made" / "000000.json"
    durable.create_json(path, {"first": True})
    with pytest.raises(FileExistsError):
        durable.create_json(path, {"first": False})
    assert json.loads(path.read_text()) == {"first": True}
    assert list(path.parent.iterdir()) == [path]


def test_one_of_many_creators_wins(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    won: list[int] = []
    start = threading.Barrier(8)

    def create(number: int) -> None:
        start.wait()
        try:
            durable.create_json(path, number)
        except FileExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert json.loads(path.read_text()) == won[0]
    assert list(tmp_path.iterdir()) == [path]


def test_publish_folder_makes_the_folder_appear(tmp_path: Path) -> None:
    temporary = make_folder(tmp_path / ".tmp" / "a", "one")
    assert durable.publish_folder(temporary, tmp_path / "units" / "a") is True
    assert (tmp_path / "units" / "a" / "inner" / "file").read_text() == "one"
    assert not temporary.exists()


def test_second_publisher_loses_and_drops_its_copy(tmp_path: Path) -> None:
    final = tmp_path / "units" / "a"
    durable.publish_folder(make_folder(tmp_path / "1", "one"), final)
    assert durable.publish_folder(make_folder(tmp_path / "2", "two"), final) is False
    assert (final / "inner" / "file").read_text() == "one"
    assert not (tmp_path / "2").exists()


def test_publishing_onto_a_file_is_an_error_that_keeps_both(tmp_path: Path) -> None:
    final = tmp_path / "a"
    final.write_text("a file")
    temporary = make_folder(tmp_path / "1", "one")
    with pytest.raises(OSError, match="Not a directory"):
        durable.publish_folder(temporary, final)
    assert final.read_text() == "a file"
    assert (temporary / "inner" / "file").read_text() == "one"


def test_fault_point_kills_without_a_last_word() -> None:
    code = (
        "from pipeline.durable import fault_point\n"
        "try:\n fault_point('other'); print('past', flush=True); fault_point('here')\n"
        "finally:\n print('alive')"
    )
    result = run_python(code, "here")
    assert (result.returncode, result.stdout) == (-signal.SIGKILL, "past\n")


def test_fault_point_counts_its_passages() -> None:
    code = (
        "from pipeline.durable import fault_point\n"
        "for number in range(5): print(number, flush=True); fault_point('here')"
    )
    result = run_python(code, "here:3")
    assert (result.returncode, result.stdout) == (-signal.SIGKILL, "0\n1\n2\n")


def test_fault_point_is_silent_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BEAMCLIP_FAULT_POINT", raising=False)
    durable.fault_point("before-rename")


@pytest.mark.parametrize(("point", "published"), [("before-rename", False), ("after-rename", True)])
def test_killed_publisher_leaves_all_or_nothing(
    tmp_path: Path, point: str, published: bool
) -> None:
    temporary, final = make_folder(tmp_path / "1", "one"), tmp_path / "units" / "a"
    code = (
        "from pathlib import Path; from pipeline.durable import publish_folder; "
        f"publish_folder(Path({str(temporary)!r}), Path({str(final)!r}))"
    )
    assert run_python(code, point).returncode == -signal.SIGKILL
    there, elsewhere = (final, temporary) if published else (temporary, final)
    assert (there / "inner" / "file").read_text() == "one"
    assert not elsewhere.exists()


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES]
)
def test_a_disk_that_takes_nothing_more_is_named_with_what_was_needed(
    tmp_path: Path, number: int
) -> None:
    place = tmp_path / "not" / "there" / "yet"
    with pytest.raises(StorageError) as error, durable.storing("the unit", place, 2_500_000):
        raise OSError(number, os.strerror(number))
    for part in (f"cannot write {place}: {os.strerror(number)}", "the unit: 2.5 MB", "are free"):
        assert part in str(error.value)


def test_a_file_that_says_its_name_is_named_and_numpys_bare_error_is_understood(
    tmp_path: Path,
) -> None:
    with (
        pytest.raises(StorageError, match="cannot write /some/chunk: "),
        durable.storing("", tmp_path),
    ):
        raise OSError(errno.ENOSPC, "No space left on device", "/some/chunk")
    with (
        pytest.raises(StorageError, match="9 requested and 0 written"),
        durable.storing("", tmp_path),
    ):
        raise OSError("9 requested and 0 written")


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "gone"),
        FileNotFoundError("as zarr says it"),
        ValueError("other"),
    ],
)
def test_any_other_error_passes_as_it_is(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as found, durable.storing("", tmp_path):
        raise error
    assert found.value is error
