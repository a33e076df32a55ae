"""Shards: every member of a tar is accounted for, or it is an error."""

import os
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import pytest

from pipeline.errors import SampleError, ShardError
from pipeline.shards import (
    Member,
    Sample,
    Shard,
    content_digest,
    find_shards,
    write_shards,
)
from tests.inputs import labelled_samples
from tests.tars import LONG_KEY, NOT_UTF8, contents, read, tar_bytes

# --- samples -----------------------------------------------------------------------------------


def sample(**members: bytes) -> Sample:
    found = {name: Member(0, len(content), content) for name, content in members.items()}
    return Sample(0, "a", found)


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "png", "webp"])
def test_the_image_is_found_by_its_extension(extension: str) -> None:
    assert sample(**{"cls": b"1", extension: b"img"}).image().content == b"img"


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({}, "no-image"),
        ({"cls": b"1", "gif": b""}, "no-image"),
        ({"seg.png": b""}, "no-image"),
        ({"jpg": b"", "png": b""}, "several-images"),
        ({"jpg": b"", "jpeg": b""}, "several-images"),
    ],
)
def test_no_image_or_several_are_counted(members: dict[str, bytes], reason: str) -> None:
    with pytest.raises(SampleError) as caught:
        sample(**members).image()
    assert caught.value.reason == reason
    assert all(name in caught.value.detail for name in members)


@pytest.mark.parametrize(
    ("text", "label"), [(b"0", 0), (b"7\n", 7), (b" 12 ", 12), (b"999999999", 999_999_999)]
)
def test_labels_are_class_numbers(text: bytes, label: int) -> None:
    assert sample(cls=text).label() == label


def test_no_label_is_minus_one() -> None:
    assert sample(jpg=b"").label() == -1


@pytest.mark.parametrize("text", [b"", b"cat", b"-1", b"1.0", b"1 2", b"1e3", b"9" * 10, b"\xb2"])
def test_a_label_that_is_no_number_is_counted(text: bytes) -> None:
    with pytest.raises(SampleError, match="bad-label"):
        sample(cls=text).label()


def test_content_digest_is_pinned() -> None:
    """Caches hold it; stage two compares."""
    assert content_digest(b"") == 0x2D06800538D394C2
    assert content_digest(b"beamclip") == 0x69968651773DB50C


# --- writing -----------------------------------------------------------------------------------


def test_written_shards_read_back(tmp_path: Path) -> None:
    pairs = labelled_samples(7)
    paths = write_shards(pairs, tmp_path, "val", per_shard=3)
    assert [path.name for path in paths] == ["val-000000.tar", "val-000001.tar", "val-000002.tar"]
    shards = find_shards([str(tmp_path)])
    assert [len(read(shard)) for shard in shards] == [3, 3, 1]
    found = [pair for shard in shards for pair in contents(read(shard))]
    assert [(key, dict(sorted(members.items()))) for key, members in pairs] == [
        (key, dict(sorted(members.items()))) for key, members in found
    ]


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        paths = write_shards(labelled_samples(9), tmp_path / name, "train", per_shard=4)
        digests.append([sha256(path.read_bytes()).hexdigest() for path in paths])
    assert digests[0] == digests[1]
    assert len(digests[0]) == 3


def test_a_full_last_shard_leaves_no_empty_one(tmp_path: Path) -> None:
    assert len(write_shards(labelled_samples(6), tmp_path, "train", per_shard=3)) == 2
    assert write_shards([], tmp_path / "none", "train", per_shard=3) == []


@pytest.mark.parametrize("key", [LONG_KEY, NOT_UTF8, "ä 🙂", "a/b", "../x"])
def test_odd_keys_can_be_written(tmp_path: Path, key: str) -> None:
    write_shards([(key, {"jpg": b"1", "cls": b"0"})], tmp_path, "train", per_shard=1)
    (shard,) = find_shards([str(tmp_path)])
    assert contents(read(shard)) == [(key, {"cls": b"0", "jpg": b"1"})]


@pytest.mark.parametrize(
    ("key", "members"), [("a.b", {"jpg": b""}), ("", {"jpg": b""}), ("a", {"_jpg": b""}), ("a", {})]
)
def test_what_would_not_read_back_is_not_written(
    tmp_path: Path, key: str, members: dict[str, bytes]
) -> None:
    with pytest.raises(ValueError, match="would not read back"):
        write_shards([("fine", {"jpg": b""}), (key, members)], tmp_path, "train", per_shard=9)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("between", [0, 1])
def test_a_key_that_comes_twice_is_not_written_as_reading_would_refuse_it(
    tmp_path: Path, between: int
) -> None:
    pairs = [("a", {"jpg": b""}), *[("b", {"jpg": b""})] * between, ("a", {"png": b""})]
    with pytest.raises(ShardError, match="two samples have the key 'a'"):
        write_shards(pairs, tmp_path, "train", per_shard=9)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_source_leaves_whole_shards_only(tmp_path: Path) -> None:
    def failing() -> object:
        yield from labelled_samples(5)
        raise OSError("source is gone")

    with pytest.raises(OSError, match="source is gone"):
        write_shards(failing(), tmp_path, "train", per_shard=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "train-000000.tar",
        "train-000001.tar",
    ]


# --- finding -----------------------------------------------------------------------------------

Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Make a folder of small shards by name."""

    def make(*names: str, folder: str = "data") -> Path:
        for name in names:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_bytes(tar_bytes([("a.jpg", name.encode())]))
        return tmp_path / folder

    return make


def names(shards: Sequence[Shard]) -> list[str]:
    return [f"{shard.split}-{shard.name}" for shard in shards]


def unfound(*patterns: object) -> str:
    with pytest.raises(ShardError) as caught:
        find_shards([str(pattern) for pattern in patterns])
    return str(caught.value)


THREE = ("train-000000.tar", "train-000001.tar", "test-000000.tar")


def test_shards_are_found_in_order_of_split_then_name(tree: Tree) -> None:
    folder = tree(*THREE, "val-b.tar", "val-a.tar")
    shards = find_shards([str(folder)])
    assert names(shards) == [
        "train-000000", "train-000001", "val-a", "val-b", "test-000000",
    ]  # fmt: skip
    assert all(shard.size_bytes == shard.path.stat().st_size for shard in shards)
    assert all(shard.mtime_ns == shard.path.stat().st_mtime_ns for shard in shards)
    backwards = [str(path) for path in sorted(folder.iterdir(), reverse=True)]
    assert find_shards(backwards) == shards


def test_every_kind_of_pattern_finds_the_same(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tree(*THREE)
    wanted = names(find_shards([str(folder)]))
    listed = folder / "list.txt"
    listed.write_text(f"# shards\n\n{folder}/train-*.tar\n  {folder}/test-000000.tar  \n")
    nested = folder / "nested.txt"
    nested.write_text(f"@{listed}\n")
    for patterns in (
        [f"{folder}/"],
        [f"{folder}/*.tar"],
        [f"{folder}/train-{{000000..000001}}.tar", f"{folder}/test-*.tar"],
        [f"{folder}/{{train,test}}-*.tar"],
        [f"{folder}/train-00000[01].tar", f"{folder}/test-00000?.tar"],
        [f"@{listed}"],
        [f"@{nested}"],
        [str(folder / name) for name in THREE],
    ):
        assert names(find_shards(patterns)) == wanted, patterns
    monkeypatch.chdir(folder)
    assert names(find_shards(["."])) == wanted
    assert names(find_shards(["*.tar"])) == wanted
    assert names(find_shards(["./train-{000000..000001}.tar", "test-000000.tar"])) == wanted


def test_a_stated_split_overrules_the_name(tree: Tree) -> None:
    folder = tree("000000.tar", "000001.tar")
    assert names(find_shards([f"test={folder}"])) == ["test-000000", "test-000001"]
    other = tree("part.tar", folder="other")
    assert names(find_shards([f"val={other}/*.tar", f"train={folder}/000000.tar"])) == [
        "train-000000",
        "val-part",
    ]
    assert names(find_shards([f"val={tree('train-0.tar', folder='third')}"])) == ["val-train-0"]


def test_a_stated_split_holds_for_a_list(tree: Tree) -> None:
    folder = tree("a.tar", "b.tar", "train-c.tar")
    listed = folder / "list.txt"
    listed.write_text(f"{folder}/a.tar\nval={folder}/b.tar\n")
    assert names(find_shards([f"test=@{listed}"])) == ["val-b", "test-a"]


def test_a_name_without_a_split_is_refused_with_the_way_out(tree: Tree) -> None:
    folder = tree("000000.tar")
    assert "train=" in unfound(folder)
    for name in ("train.tar", "training-0.tar", "train_0.tar", "Train-0.tar"):
        assert "does not say its split" in unfound(tree(name, folder=name) / name)


def test_names_that_folders_cannot_hold_are_refused(tree: Tree) -> None:
    for name in (
        "train-a b.tar",
        "train-.tar",
        "train-.hidden.tar",
        "train-ä.tar",
        "train-a\n.tar",
    ):
        assert "a shard's name may hold" in unfound(tree(name, folder=name) / name)


def test_two_shards_of_one_name_are_refused(tree: Tree) -> None:
    one, other = tree("train-0.tar"), tree("train-0.tar", folder="other")
    assert "two shards are both train-0" in unfound(one, other)
    assert "two shards are both train-0" in unfound(one, one)
    assert names(find_shards([str(one), f"test={other}/train-0.tar"])) == [
        "train-0",
        "test-train-0",
    ]


def test_every_missing_or_foreign_file_is_listed_at_once(tree: Tree) -> None:
    folder = tree("train-000000.tar")
    (folder / "train-000001.tar").write_bytes(b"")
    (folder / "train-000002.tar").write_bytes(b"<!DOCTYPE html><html>not found</html>" * 40)
    (folder / "train-000003.tar").write_bytes(b"short")
    (folder / "train-000004.tar").mkdir()
    message = unfound(
        f"{folder}/train-{{000000..000006}}.tar",
        f"{folder}/none-*.tar",
        f"{folder}/test-0.tar",
        f"{folder}/x.zip",
    )
    lines = message.splitlines()[1:]
    for number, words in (
        (1, "empty file"),
        (2, "not a tar; it begins b'<!DOCTYPE html>"),
        (3, "not a tar"),
        (4, "a folder without any .tar"),
        (5, "No such file"),
        (6, "No such file"),
    ):
        (line,) = [line for line in lines if f"train-00000{number}.tar" in line]
        assert words in line
    for name in ("none-*.tar", "test-0.tar", "x.zip"):
        assert f"  {folder}/{name}: No such file" in lines
    assert len(lines) == 9


def test_one_pattern_of_many_that_matches_nothing_is_an_error(tree: Tree, tmp_path: Path) -> None:
    folder = tree("train-000000.tar")
    (tmp_path / "bare").mkdir()
    (tmp_path / "list.txt").write_text("# nothing yet\n")
    assert f"{folder}/val-*.tar: No such file" in unfound(folder, f"{folder}/val-*.tar")
    assert f"{folder}/val-*.tar: No such file" in unfound(f"{folder}/{{train,val}}-*.tar")
    assert f"{tmp_path}/bare: a folder without any .tar" in unfound(folder, tmp_path / "bare")
    assert f"{tmp_path}/list.txt is empty" in unfound(folder, f"@{tmp_path}/list.txt")
    assert "no pattern was given" in unfound()


def test_compressed_tars_are_refused(tree: Tree) -> None:
    folder = tree("train-000000.tar")
    for name in ("train-1.tar.gz", "train-1.tgz", "train-1.tar.zst"):
        (folder / name).write_bytes(b"\x1f\x8b\x08")
        assert "unpack" in unfound(folder / name)
        assert "unpack" in unfound(folder)  # nor passed over in a folder
        (folder / name).unlink()
    (folder / "train-2.tar").write_bytes(b"\x1f\x8b\x08" + b"x" * 600)  # gzip by another name
    assert "not a tar" in unfound(folder)


def test_other_files_in_a_folder_are_left_alone(tree: Tree) -> None:
    folder = tree("train-000000.tar")
    for name in ("classes.txt", "train-000000.tar.idx", ".train-000001.tar.0a1b.tmp"):
        (folder / name).write_text("x")
    assert names(find_shards([str(folder)])) == ["train-000000"]


@pytest.mark.parametrize(
    "pattern",
    [
        "pipe:cat train-0.tar",
        "http://host/train-0.tar",
        "https://host/train-{0..9}.tar",
        "s3://bucket/train-0.tar",
        "file:train-0.tar",
        "train=pipe:cat x.tar",
    ],
)
def test_what_is_no_path_is_refused(pattern: str) -> None:
    assert "is no path" in unfound(pattern)


def test_a_list_cannot_smuggle_in_a_command(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"pipe:touch {tmp_path}/owned\n")
    assert "is no path" in unfound(f"@{tmp_path}/list.txt")
    assert not (tmp_path / "owned").exists()


def test_lists_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    assert "cannot read the list" in unfound(f"@{tmp_path}/none.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\0")
    assert "cannot read the list" in unfound(f"@{tmp_path}/binary.txt")
    (tmp_path / "loop.txt").write_text(f"@{tmp_path}/loop.txt\n")
    assert "names itself" in unfound(f"@{tmp_path}/loop.txt")


def test_unbalanced_braces_are_refused(tree: Tree) -> None:
    assert "unbalanced braces" in unfound(f"{tree('train-0.tar')}/train-{{0..3.tar")


def test_a_pipe_in_the_file_system_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train-0.tar")
    assert "not a file" in unfound(tmp_path / "train-0.tar")


def test_links_to_shards_are_followed(tree: Tree, tmp_path: Path) -> None:
    folder = tree("train-0.tar")
    (tmp_path / "train-1.tar").symlink_to(folder / "train-0.tar")
    (shard,) = find_shards([str(tmp_path / "train-1.tar")])
    assert shard.size_bytes == (folder / "train-0.tar").stat().st_size
    assert len(read(shard)) == 1
