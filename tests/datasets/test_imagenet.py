"""ImageNet from its official tars, or folders: nothing unpacked, nothing twice, labels in order."""

import gzip
import json
import tarfile
from pathlib import Path

import pytest

from pipeline.datasets.known import write_known
from pipeline.errors import BeamclipError
from pipeline.imagenet import class_names, synsets
from pipeline.prompt_file import check_class_order, load_prompts
from pipeline.shards import Sample, find_shards, write_shards
from tests.conftest import Invoke
from tests.datasets.archives import jpeg, mat, tar_bytes, write_tar
from tests.datasets.written import digests, read

TENCH, CRANE, DOG = "n01440764", "n02012849", "n02085620"  # the second is the bird
ODD = ("n00004475", "n12997919")  # in ImageNet-21K alone
SMALL = jpeg(0, 0, 8, 8)


def labels(samples: list[Sample]) -> dict[str, int]:
    return {sample.key: sample.label() for sample in samples}


def refusal(name: str, source: Path | None, out: Path, **options: object) -> str:
    with pytest.raises(BeamclipError) as caught:
        write_known(name, out, source=source, **options)
    assert not out.exists()
    assert not list(out.parent.glob(".out.*"))
    return str(caught.value)


# --- 1K ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official tars: two classes of two images, and three images of validation."""
    folder = tmp_path_factory.mktemp("imagenet")
    inner = {
        f"{wnid}.tar": tar_bytes({f"{wnid}_{i}.JPEG": jpeg(i, seed + i) for i in (10, 7)})
        for seed, wnid in ((100, CRANE), (200, TENCH))
    }
    write_tar(folder / "ILSVRC2012_img_train.tar", inner)
    val = {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(i, 300 + i) for i in (1, 2, 3)}
    write_tar(folder / "ILSVRC2012_img_val.tar", val)
    devkit(folder / "ILSVRC2012_devkit_t12.tar.gz", [3, 1, 2])
    return folder


def devkit(path: Path, truth: list[int]) -> None:
    """Write the devkit: its own numbers of the synsets, and the ground truth of validation."""
    import numpy as np

    kind = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")]
    rows = [(i, wnid, "a, b", "", 0) for i, wnid in enumerate((TENCH, CRANE, DOG), 1)]
    base = "ILSVRC2012_devkit_t12/data"
    members = {
        f"{base}/meta.mat": mat(synsets=np.array([*rows, (1001, "n1", "x", "", 3)], dtype=kind)),
        f"{base}/ILSVRC2012_validation_ground_truth.txt": "\n".join(map(str, truth)).encode(),
    }
    write_tar(path, members, "w:gz")


@pytest.fixture
def _no_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision take a devkit of another sum than the official one."""
    from torchvision.datasets import imagenet

    monkeypatch.setattr(imagenet, "_verify_archive", lambda root, file, md5: None)


@pytest.mark.usefixtures("_no_sums")
def test_the_official_tars_are_streamed_and_validation_is_test(
    tars: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = write_known("imagenet-1k", tmp_path / "out", source=tars, per_shard=3)
    assert written.samples == {"train": 4, "test": 3}
    found = read(tmp_path / "out")
    wnids = synsets()
    assert labels(found["train"]) == {
        f"{wnid}_{i}": wnids.index(wnid) for wnid in (CRANE, TENCH) for i in (10, 7)
    }
    assert labels(found["test"]) == {
        f"ILSVRC2012_val_{i:08d}": wnids.index(wnid)
        for i, wnid in ((1, DOG), (2, TENCH), (3, CRANE))
    }
    assert found["train"][0].image().content == jpeg(10, 110)
    assert (tmp_path / "out/classes.txt").read_text().splitlines() == list(class_names())
    check_class_order(load_prompts("imagenet-1k"), find_shards([str(tmp_path / "out")]))
    assert caplog.records == []
    assert sorted(path.name for path in tars.iterdir()) == [
        *("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
    ]


def test_a_devkit_of_another_sum_is_refused(tars: Path, tmp_path: Path) -> None:
    assert "cannot read" in refusal("imagenet-1k", tars, tmp_path / "out")


@pytest.mark.usefixtures("_no_sums")
@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
def test_a_cut_tar_is_an_error(tars: Path, tmp_path: Path, name: str) -> None:
    for path in tars.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = (tmp_path / name).read_bytes()
    with tarfile.open(tmp_path / name) as tar:
        second = tar.getmembers()[1].offset
    for size in (second, second + 100, second + 600):
        (tmp_path / name).write_bytes(content[:size])
        assert "the tar is damaged or incomplete" in refusal(
            "imagenet-1k", tmp_path, tmp_path / "out"
        )


def test_missing_files_and_no_folder_say_what_is_wanted(tars: Path, tmp_path: Path) -> None:
    assert "none was given" in refusal("imagenet-1k", None, tmp_path / "out")
    (tmp_path / "ILSVRC2012_img_train.tar").symlink_to(tars / "ILSVRC2012_img_train.tar")
    message = refusal("imagenet-1k", tmp_path, tmp_path / "out")
    assert "lacks ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz" in message


def test_folders_of_all_classes_serve_too(tmp_path: Path) -> None:
    source = tmp_path / "imagenet"
    for split in ("train", "val"):
        for wnid in synsets():
            folder = source / split / wnid
            folder.mkdir(parents=True)
            (folder / f"{split}_{wnid}.JPEG").write_bytes(SMALL)
    written = write_known("imagenet-1k", tmp_path / "out", source=source)
    assert written.samples == {"train": 1000, "test": 1000}
    found = labels(read(tmp_path / "out")["test"])
    assert [found[f"{wnid}/val_{wnid}"] for wnid in synsets()] == list(range(1000))
    (source / f"val/{CRANE}/val_{CRANE}.JPEG").unlink()
    (source / f"val/{CRANE}").rmdir()
    message = refusal("imagenet-1k", source, tmp_path / "again")
    assert f"lacks 1 of 1,000 class folders ({CRANE}, ...)" in message


def test_files_of_one_name_in_two_synsets_and_dots_in_names_are_all_taken(tmp_path: Path) -> None:
    """Stage one refuses a key that comes twice, and a key ends at its first dot."""
    source = tmp_path / "source"
    for seed, wnid in enumerate(ODD):
        names = ("1.JPEG", "2.b.JPEG", "sub/1.JPEG", f"{wnid}_3.JPEG", ".hidden.JPEG")
        for place, name in enumerate(names):
            (source / wnid / name).parent.mkdir(parents=True, exist_ok=True)
            (source / wnid / name).write_bytes(jpeg(0, 10 * seed + place))
    written = write_known("imagenet-21k", tmp_path / "out", source=source)
    assert written.samples == {"train": 8}
    assert [s.key for s in read(tmp_path / "out")["train"]] == [
        f"{wnid}{name}" for wnid in ODD for name in ("/1", "/2_b", "_3", "/sub/1")
    ]
    (source / ODD[0] / "2_b.JPEG").write_bytes(SMALL)
    again = refusal("imagenet-21k", source, tmp_path / "again")
    assert f"two samples have the key '{ODD[0]}/2_b': name each otherwise" in again


@pytest.mark.usefixtures("_no_sums")
@pytest.mark.parametrize("name", ["ILSVRC2012_val_0.JPEG", "ILSVRC2012_val_4.JPEG", "x.JPEG"])
def test_an_image_of_validation_that_has_no_label_is_an_error(
    tars: Path, tmp_path: Path, name: str
) -> None:
    for path in tars.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write_tar(tmp_path / "ILSVRC2012_img_val.tar", {name: SMALL})
    message = refusal("imagenet-1k", tmp_path, tmp_path / "out")
    assert f"{name} is not one of images 1 to 3" in message


# --- 21K -----------------------------------------------------------------------------------------


def contents() -> dict[str, dict[str, bytes]]:
    """Images of four synsets; some bytes lie in more than one."""
    shared, of_1k = jpeg(1, 999), jpeg(2, 888)
    return {
        ODD[1]: {f"{ODD[1]}_1.JPEG": jpeg(0, 1), f"{ODD[1]}_2.JPEG": of_1k},
        ODD[0]: {f"{ODD[0]}_1.JPEG": shared, f"{ODD[0]}_2.JPEG": jpeg(0, 2)},
        TENCH: {f"{TENCH}_1.JPEG": of_1k, f"{TENCH}_2.JPEG": jpeg(0, 3)},
        CRANE: {f"{CRANE}_1.JPEG": shared},
    }


def layout(source: Path, kind: str) -> Path:
    """Lay the synsets out as a release does."""
    source.mkdir()
    inner = {f"{wnid}.tar": tar_bytes(images) for wnid, images in contents().items()}
    if kind == "fall11":
        write_tar(source / "fall11_whole.tar", inner)
    elif kind == "winter21":
        packed = {f"winter21_whole/{name}": content for name, content in inner.items()}
        path = write_tar(source / "whole.tar", packed)
        (source / "winter21_whole.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    elif kind == "tars":
        for name, content in inner.items():
            (source / name).write_bytes(content)
    else:
        for wnid, images in contents().items():
            (source / wnid).mkdir()
            for name, content in images.items():
                (source / wnid / name).write_bytes(content)
    return source


@pytest.mark.parametrize("kind", ["fall11", "winter21", "tars", "folders"])
def test_each_release_gives_the_same_labels_and_no_image_twice(tmp_path: Path, kind: str) -> None:
    source = layout(tmp_path / "source", kind)
    written = write_known("imagenet-21k", tmp_path / "out", source=source)
    assert written.samples == {"train": 5}
    assert written.left_out == {"synsets excluded": 0, "duplicates": 2}
    found = read(tmp_path / "out")["train"]
    wnids = synsets("imagenet-22k")
    assert all(s.label() == wnids.index(s.key.partition("_")[0]) for s in found)
    assert len({s.image().content for s in found}) == 5
    assert (tmp_path / "out/classes.txt").read_text().splitlines() == list(wnids)


@pytest.mark.parametrize("kind", ["fall11", "winter21", "tars", "folders"])
def test_without_imagenet_1k_not_one_of_its_images_is_left(
    tmp_path: Path, kind: str, beamclip: Invoke
) -> None:
    source = layout(tmp_path / "source", kind)
    words = ("data", "imagenet-21k", "--from", source, "--exclude-synsets", "imagenet-1k")
    done = beamclip(*words, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    left_out = json.loads(done.out)["left_out"]
    assert left_out == {"synsets excluded": 2, "duplicates": 2}
    found = read(tmp_path / "out")["train"]
    taken = {content for wnid in (TENCH, CRANE) for content in contents()[wnid].values()}
    assert {s.image().content for s in found} == {jpeg(0, 1), jpeg(0, 2)}
    assert not taken.intersection(s.image().content for s in found)
    classes = (tmp_path / "out/classes.txt").read_text().splitlines()
    assert len(classes) == 21_841 - 999  # fall 2011 lacks one of the 1,000, n04399382
    assert all(classes[s.label()] == s.key.partition("_")[0] for s in found)


def test_synsets_to_leave_out_may_be_listed_and_must_be_known(tmp_path: Path) -> None:
    source = layout(tmp_path / "source", "tars")
    (tmp_path / "list.txt").write_text(f"{ODD[0]}\n\n{ODD[1]}\n")
    written = write_known(
        "imagenet-21k", tmp_path / "out", source=source, exclude_synsets=str(tmp_path / "list.txt")
    )
    assert {sample.key[:9] for sample in read(tmp_path / "out")["train"]} <= {TENCH, CRANE}
    assert written.left_out["synsets excluded"] == 2
    (tmp_path / "list.txt").write_text("n999\n")
    for name, words in ((tmp_path / "list.txt", "'n999' is no synset"), ("none.txt", "none.txt")):
        again = tmp_path / "again"
        assert words in refusal("imagenet-21k", source, again, exclude_synsets=str(name))


def test_images_of_given_shards_are_left_out_by_their_bytes(
    tmp_path: Path, beamclip: Invoke
) -> None:
    """Images of ImageNet-1K, or of another test set, may lie in other synsets than its own."""
    source = layout(tmp_path / "source", "fall11")
    pairs = [("a", {"jpg": jpeg(0, 2)}), ("b", {"txt": b"no image"}), ("c", {"jpg": jpeg(1, 999)})]
    for name, part in (("one", pairs[:2]), ("two", pairs[2:])):
        write_shards(part, tmp_path / "others" / name, "test", per_shard=9)
    words = ("data", "imagenet-21k", "--from", source, "--json", "--exclude-images")
    done = beamclip(*words, tmp_path / "others/*/test-*.tar", "--out", tmp_path / "never")
    assert done.code == 1  # two shards of one name
    (tmp_path / "others/two/test-000000.tar").rename(tmp_path / "others/two/test-000001.tar")
    done = beamclip(*words, tmp_path / "others/*/test-*.tar", "--out", tmp_path / "out")
    assert json.loads(done.out)["left_out"] == {
        "synsets excluded": 0,
        "duplicates": 1,
        "images excluded": 3,
    }
    kept = [s.image().content for s in read(tmp_path / "out")["train"]]
    assert kept == [jpeg(0, 1), jpeg(2, 888), jpeg(0, 3)]
    message = refusal("imagenet-21k", source, tmp_path / "no", exclude_images=str(tmp_path / "x"))
    assert str(tmp_path / "x") in message


def test_a_cut_or_foreign_release_is_an_error(tmp_path: Path, beamclip: Invoke) -> None:
    source = layout(tmp_path / "source", "winter21")
    path = source / "winter21_whole.tar.gz"
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:size])
        message = refusal("imagenet-21k", source, tmp_path / "out")
        assert "damaged or incomplete" in message
    path.unlink()
    assert "holds no synset" in refusal("imagenet-21k", source, tmp_path / "out")
    (source / "n99999999").mkdir()
    (source / "n99999999/1.JPEG").write_bytes(SMALL)
    outcome = beamclip("data", "imagenet-21k", "--from", source, "--out", tmp_path / "out")
    assert outcome.code == 1
    assert "'n99999999' is no synset of this dataset" in outcome.err


def test_written_twice_are_the_same_bytes(tmp_path: Path) -> None:
    source = layout(tmp_path / "source", "fall11")
    one, two = (write_known("imagenet-21k", tmp_path / n, source=source) for n in ("one", "two"))
    assert digests(one.shards) == digests(two.shards)
