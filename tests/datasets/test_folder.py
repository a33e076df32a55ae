"""A folder of images becomes shards: complete, deterministic, bytes unchanged."""

import json
import logging
from pathlib import Path

import pytest

from pipeline.datasets.folder import image_folder
from pipeline.datasets.publish import write_dataset
from pipeline.errors import DataError
from pipeline.shards import Sample
from tests.datasets.written import digests, read
from tests.inputs import encode, square


def write_folder(
    source: Path, out: Path, *, per_shard: int = 1000, holdout: float = 0.0
) -> list[Path]:
    return write_dataset(image_folder(source, holdout=holdout), out, per_shard=per_shard).shards


def paths_of(samples: list[Sample]) -> list[str]:
    return [json.loads(sample.members["json"].content)["path"] for sample in samples]


def labels_of(samples: list[Sample]) -> list[int]:
    return [sample.label() for sample in samples]


def refusal(source: Path, out: Path, holdout: float = 0.0) -> str:
    with pytest.raises(DataError) as caught:
        write_folder(source, out, holdout=holdout)
    assert not list(out.glob("*"))
    return str(caught.value)


def fill(folder: Path, *names: str) -> Path:
    """Put a different image at each path."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {"jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}.get(path.suffix[1:].lower(), "PNG")
        path.write_bytes(encode(square(number % 3, number), kind))
    return folder


PETS = ("cat/1.png", "cat/2.JPG", "cat/old/3.jpeg", "ant/1.webp", "dog/1.png", "dog/10.png")


# --- folders -------------------------------------------------------------------------------------


def test_a_folder_of_classes(tmp_path: Path) -> None:
    source, out = fill(tmp_path / "pets", *PETS), tmp_path / "out"
    paths = write_folder(source, out, per_shard=4)
    assert [path.name for path in paths] == ["train-000000.tar", "train-000001.tar"]
    assert (out / "classes.txt").read_text() == "ant\ncat\ndog\n"
    samples = read(out)["train"]
    assert paths_of(samples) == [
        "ant/1.webp", "cat/1.png", "cat/2.JPG", "cat/old/3.jpeg", "dog/1.png", "dog/10.png",
    ]  # fmt: skip
    assert labels_of(samples) == [0, 1, 1, 1, 2, 2]
    for sample, path in zip(samples, paths_of(samples), strict=True):
        assert sample.image().content == (source / path).read_bytes()


def test_a_flat_folder_has_no_classes(tmp_path: Path) -> None:
    source = fill(tmp_path / "flat", "b.png", "a.jpg", "sub/c.png")
    write_folder(source, tmp_path / "out")
    samples = read(tmp_path / "out")["train"]
    assert paths_of(samples) == ["a.jpg", "b.png", "sub/c.png"]
    assert labels_of(samples) == [-1, -1, -1]
    assert not (tmp_path / "out" / "classes.txt").exists()


def test_folders_named_like_splits_are_splits(tmp_path: Path) -> None:
    source = fill(
        tmp_path / "pets", "train/cat/1.png", "train/dog/1.png", "val/dog/2.png", "test/eel/1.png"
    )
    write_folder(source, tmp_path / "out")
    samples = read(tmp_path / "out")
    assert {split: paths_of(found) for split, found in samples.items()} == {
        "train": ["cat/1.png", "dog/1.png"],
        "val": ["dog/2.png"],
        "test": ["eel/1.png"],
    }
    # One numbering for all splits, also for a class that only one of them has.
    assert [labels_of(found) for found in samples.values()] == [[0, 1], [1], [2]]


@pytest.mark.parametrize("beside", ["aeroplane/1.png", "loose.jpg"])
def test_images_beside_split_folders_are_not_passed_over(tmp_path: Path, beside: str) -> None:
    """A class may be called "train"; its folder must not hide all others."""
    message = refusal(fill(tmp_path / "voc", "train/1.png", beside), tmp_path / "out")
    assert "train" in message
    assert beside in message


def test_a_folder_written_twice_is_the_same_bytes(tmp_path: Path) -> None:
    source = fill(tmp_path / "pets", *PETS)
    one, two = (write_folder(source, tmp_path / name, holdout=0.4) for name in ("one", "two"))
    assert digests(one) == digests(two)
    copy = fill(tmp_path / "copy", *reversed(PETS))  # the order on disk plays no part
    for name in PETS:
        (copy / name).write_bytes((source / name).read_bytes())
    assert digests(write_folder(copy, tmp_path / "three", holdout=0.4)) == digests(one)


def test_holdout_is_a_share_chosen_by_path(tmp_path: Path) -> None:
    names = [f"{label}/{number}.png" for label in "ab" for number in range(60)]
    source = fill(tmp_path / "many", *names)
    write_folder(source, tmp_path / "out", holdout=0.25)
    samples = read(tmp_path / "out")
    train, test = (set(paths_of(samples[split])) for split in ("train", "test"))
    assert train | test == set(names)
    assert not train & test
    assert 18 <= len(test) <= 42
    # A new image moves no other one; a larger share only adds.
    fill(source, "a/new.png")
    write_folder(source, tmp_path / "later", holdout=0.25)
    assert set(paths_of(read(tmp_path / "later")["test"])) - {"a/new.png"} == test
    write_folder(source, tmp_path / "larger", holdout=0.5)
    assert set(paths_of(read(tmp_path / "larger")["test"])) > test


def test_no_holdout_no_test(tmp_path: Path) -> None:
    write_folder(fill(tmp_path / "pets", *PETS), tmp_path / "out")
    assert set(read(tmp_path / "out")) == {"train"}


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    elsewhere = fill(tmp_path / "elsewhere", "1.png")
    source = fill(tmp_path / "pets", "cat/1.png")
    (source / "dog").symlink_to(elsewhere)
    (source / "cat" / "round").symlink_to(source)  # and round in circles, once
    write_folder(source, tmp_path / "out")
    assert paths_of(read(tmp_path / "out")["train"]) == ["cat/1.png", "dog/1.png"]
    (tmp_path / "split").mkdir()
    for split in ("train", "val", "test"):
        (tmp_path / "split" / split).symlink_to(elsewhere)
    write_folder(tmp_path / "split", tmp_path / "linked")
    assert [paths_of(found) for found in read(tmp_path / "linked").values()] == [["1.png"]] * 3


def test_a_broken_link_is_an_error(tmp_path: Path) -> None:
    source = fill(tmp_path / "pets", "cat/1.png")
    (source / "cat" / "2.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(FileNotFoundError, match=r"cat/2\.png"):
        write_folder(source, tmp_path / "out")


def test_other_files_are_counted_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = fill(tmp_path / "pets", *PETS)
    for name in ("cat/notes.txt", "cat/4.gif", "README"):
        (source / name).write_text("x")
    with caplog.at_level(logging.WARNING):
        write_folder(source, tmp_path / "out")
    assert "left out 3 files that are no images" in caplog.text
    assert len(read(tmp_path / "out")["train"]) == len(PETS)


@pytest.mark.parametrize("name", ["cat/ä 🙂.png", "cat/a.b.c.png", "cat/a\nb.png"])
def test_odd_file_names_are_kept_in_the_path(tmp_path: Path, name: str) -> None:
    write_folder(fill(tmp_path / "pets", name), tmp_path / "out")
    (sample,) = read(tmp_path / "out")["train"]
    assert paths_of([sample]) == [name]
    assert sample.key == "000000000"


def test_file_names_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    name = b"cat/caf\xe9.png".decode("utf-8", "surrogateescape")
    write_folder(fill(tmp_path / "pets", name), tmp_path / "out", holdout=0.0)
    (sample,) = read(tmp_path / "out")["train"]
    assert paths_of([sample]) == [name]


def test_class_names_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    write_folder(fill(tmp_path / "pets", f"{name}/1.png"), tmp_path / "out")
    assert (tmp_path / "out" / "classes.txt").read_bytes() == b"caf\xe9\n"


def test_a_class_name_of_two_lines_is_refused(tmp_path: Path) -> None:
    message = refusal(fill(tmp_path / "pets", "a\nb/1.png", "c/1.png"), tmp_path / "out")
    assert "'a\\nb'" in message


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    assert "holds no images" in refusal(tmp_path / "none", tmp_path / "out")
    (tmp_path / "none" / "a.txt").write_text("x")
    assert "jpg, jpeg, png, webp" in refusal(tmp_path / "none", tmp_path / "out")
    source = fill(tmp_path / "pets", "train/cat/1.png")
    (source / "val").mkdir()
    assert "pets/val holds no images" in refusal(source, tmp_path / "out")


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.jpg").write_bytes(b"")
    for name in ("missing", "file.jpg"):
        assert "is no folder" in refusal(tmp_path / name, tmp_path / "out")


@pytest.mark.parametrize("holdout", [-0.1, 1.0, float("nan")])
def test_a_senseless_holdout_is_refused(tmp_path: Path, holdout: float) -> None:
    assert "--holdout" in refusal(fill(tmp_path / "pets", *PETS), tmp_path / "out", holdout)


def test_a_holdout_that_leaves_a_split_empty_is_refused(tmp_path: Path) -> None:
    source = fill(tmp_path / "pets", "cat/1.png", "dog/1.png")
    for holdout in (1e-9, 1 - 1e-9):
        assert "--holdout" in refusal(source, tmp_path / "out", holdout)


def test_holdout_beside_splits_of_its_own_is_refused(tmp_path: Path) -> None:
    source = fill(tmp_path / "pets", "train/cat/1.png")
    assert "its own splits (train)" in refusal(source, tmp_path / "out", 0.1)


def test_existing_shards_are_neither_mixed_nor_overwritten(tmp_path: Path) -> None:
    source, out = fill(tmp_path / "pets", *PETS), tmp_path / "out"
    before = digests(write_folder(source, out))
    fill(source, "eel/1.png")
    with pytest.raises(DataError, match="already holds 1 shards"):
        write_folder(source, out)
    assert digests(sorted(out.glob("*.tar"))) == before
    assert "eel" not in (out / "classes.txt").read_text()


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    """What file managers leave behind is no image, and no class that would shift the labels."""
    source = fill(tmp_path / "pets", *PETS)
    for name in (".thumbnails/a.png", "cat/._b.png", "._cover.png"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"no image")
    write_folder(source, tmp_path / "out")
    assert len(read(tmp_path / "out")["train"]) == len(PETS)
    assert ".thumbnails" not in (tmp_path / "out" / "classes.txt").read_text(encoding="utf-8")


def test_images_beside_class_folders_cost_the_labels_and_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(fill(tmp_path / "pets", *PETS, "cover.png"), tmp_path / "out")
    assert "lie in no sub-folder (cover.png, ...): no image gets a label" in caplog.text


def test_a_set_that_could_not_be_finished_is_not_there(tmp_path: Path) -> None:
    source = fill(tmp_path / "pets", *PETS)
    (source / "dog" / "zzz.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):
        write_folder(source, tmp_path / "out", per_shard=1)
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".out*")) == []


def test_a_folder_with_other_files_is_not_mixed_with(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty"):
        write_folder(fill(tmp_path / "pets", *PETS), tmp_path / "out")
