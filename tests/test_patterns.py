"""Patterns name locations, whether they exist or not; lists mean what their lines mean."""

from pathlib import Path

import pytest

from pipeline.errors import ShardError
from pipeline.patterns import MOST_NAMES, expand
from pipeline.shards import find_shards
from tests.tars import tar_bytes


def locations(pattern: object, *allowed: str) -> list[str]:
    return [location for _, location in expand(str(pattern), allowed)]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("x-{0..3}.tar", ["x-0.tar", "x-1.tar", "x-2.tar", "x-3.tar"]),
        ("x-{08..10}.tar", ["x-08.tar", "x-09.tar", "x-10.tar"]),
        ("x-{000..4..2}.tar", ["x-000.tar", "x-002.tar", "x-004.tar"]),
        ("{a,b}-{0..1}.tar", ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]),
        ("x{,-1}.tar", ["x.tar", "x-1.tar"]),
        ("x-{0}.tar", ["x-{0}.tar"]),
        (r"x-\{0..1\}.tar", ["x-{0..1}.tar"]),
    ],
)
def test_braces_stand_for_names(pattern: str, names: list[str]) -> None:
    assert locations(pattern) == names


def test_braces_work_in_urls(tmp_path: Path) -> None:
    assert locations("s3://bucket/train-{00..01}.tar", "s3") == [
        "s3://bucket/train-00.tar",
        "s3://bucket/train-01.tar",
    ]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "pattern",
    [
        f"x-{{0..{MOST_NAMES}}}.tar",
        "x-{0..99999999999999999999}.tar",
        "x-{-5..99999999999}.tar",
        "{0..9999}{0..9999}.tar",
    ],
)
def test_a_range_that_would_fill_the_memory_is_refused(pattern: str) -> None:
    with pytest.raises(ShardError, match=f"more than {MOST_NAMES} names"):
        locations(pattern)


def test_a_list_means_its_lines_but_empty_ones_and_comments(tmp_path: Path) -> None:
    """Windows line ends and a byte order mark included; a # later in a line is part of a name."""
    listed = tmp_path / "list.txt"
    listed.write_bytes(
        "\ufeff# shards of May\r\n\r\n  a.tar\t\r\n#b.tar\r\ntest=c-{0..1}.tar\nd #1.tar\n   # e\n"
        "f\x85g\u2028h.tar\nlast.tar".encode()
    )
    assert list(expand(f"val=@{listed}", ())) == [
        ("val", "a.tar"),
        ("test", "c-0.tar"),
        ("test", "c-1.tar"),
        ("val", "d #1.tar"),
        ("val", "f\x85g\u2028h.tar"),
        ("val", "last.tar"),
    ]


def test_relative_paths_in_a_list_start_where_the_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As everywhere on the command line; nested lists too."""
    (tmp_path / "here").mkdir()
    (tmp_path / "lists").mkdir()
    (tmp_path / "here" / "train-0.tar").write_bytes(tar_bytes([("a.jpg", b"x")]))
    (tmp_path / "lists" / "outer.txt").write_text("@inner.txt\n")
    (tmp_path / "here" / "inner.txt").write_text("train-*.tar\n")
    monkeypatch.chdir(tmp_path / "here")
    (shard,) = find_shards(["@../lists/outer.txt"])
    assert shard.location == "train-0.tar"
    monkeypatch.chdir(tmp_path / "lists")
    with pytest.raises(ShardError, match=r"cannot read the list of shards inner\.txt"):
        find_shards(["@outer.txt"])


def test_a_list_may_hold_urls_if_they_are_allowed(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("https://host/train-{0..1}.tar?key=a\nlocal.tar\n")
    assert locations(f"@{listed}", "https") == [
        "https://host/train-0.tar?key=a",
        "https://host/train-1.tar?key=a",
        "local.tar",
    ]
    with pytest.raises(ShardError, match="--allow https"):
        locations(f"@{listed}", "s3", "http")


def test_names_that_no_file_can_have_are_missing_files(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_bytes(b"train-\0.tar\n")
    with pytest.raises(ShardError, match="No such file"):
        find_shards([f"@{listed}"])


def test_lists_that_name_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"@{tmp_path}/b.txt\n")
    (tmp_path / "b.txt").write_text(f"@{tmp_path}/a.txt\n")
    with pytest.raises(ShardError, match=r"a\.txt names itself"):
        locations(f"@{tmp_path}/a.txt")
