"""The sets that torchvision reads: from official archives in miniature, or as Debian has them."""

import gzip
import json
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torchvision.datasets as theirs

from pipeline.datasets.known import write_known
from pipeline.decode import DecodePolicy, decode
from pipeline.errors import DataError
from pipeline.prompt_file import check_class_order, load_prompts
from pipeline.shards import Sample, find_shards
from tests.conftest import Invoke
from tests.datasets import official
from tests.datasets.archives import cifar_batches, gz, idx, jpeg, mat, md5, write_tar
from tests.datasets.written import digests, read

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine; yield its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def pixels(sample: Sample) -> np.ndarray:
    return decode(sample.image().content, DecodePolicy())


def labels(samples: list[Sample]) -> list[int]:
    return [sample.label() for sample in samples]


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10's archive with three images in each batch; torchvision's sums are made its own."""
    names = {f"data_batch_{i}": 3 for i in range(1, 6)} | {"test_batch": 4}
    meta = pickle.dumps({"label_names": official.CIFAR10})
    members = cifar_batches("cifar-10-batches-py", names, "labels", meta)
    path = write_tar(tmp_path / "archives/cifar-10-python.tar.gz", members, "w:gz")
    monkeypatch.setattr(theirs.CIFAR10, "tgz_md5", md5(path))
    forget_sums(monkeypatch, theirs.CIFAR10)
    return path


def forget_sums(monkeypatch: pytest.MonkeyPatch, cls: type) -> None:
    """Take the sums of the unpacked files out of a CIFAR class: those of the archive stand."""
    for field in ("train_list", "test_list"):
        listed = [[name, None] for name, _ in getattr(cls, field)]
        monkeypatch.setattr(cls, field, listed)
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": None})  # type: ignore[attr-defined]


def test_cifar10_is_read_from_its_archive(cifar10: Path, tmp_path: Path) -> None:
    written = write_known("cifar10", tmp_path / "out", source=cifar10.parent, per_shard=10)
    assert written.samples == {"train": 15, "test": 4}
    found = read(tmp_path / "out")
    assert labels(found["train"]) == [0, 1, 2] * 5
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (3, 3072), dtype=np.uint8)[0].reshape(3, 32, 32).transpose(1, 2, 0)
    np.testing.assert_array_equal(pixels(found["train"][0]), first)
    check_class_order(load_prompts("cifar10"), find_shards([str(tmp_path / "out")]))
    assert (tmp_path / "out/classes.txt").read_text().split("\n")[:2] == ["airplane", "automobile"]
    assert sorted(path.name for path in cifar10.parent.iterdir()) == [cifar10.name]


def test_cifar100_has_its_fine_labels_with_spaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = pickle.dumps(
        {
            "fine_label_names": official.CIFAR100,
            "coarse_label_names": official.CIFAR100_COARSE,
        }
    )
    members = cifar_batches("cifar-100-python", {"train": 6, "test": 3}, "fine_labels", meta)
    path = write_tar(tmp_path / "archives/cifar-100-python.tar.gz", members, "w:gz")
    monkeypatch.setattr(theirs.CIFAR100, "tgz_md5", md5(path))
    forget_sums(monkeypatch, theirs.CIFAR100)
    write_known("cifar100", tmp_path / "out", source=path.parent)
    check_class_order(load_prompts("cifar100"), find_shards([str(tmp_path / "out")]))
    assert "aquarium fish" in (tmp_path / "out/classes.txt").read_text().split("\n")


def test_stl10_has_its_unlabelled_images_in_shards_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beamclip: Invoke
) -> None:
    rng = np.random.default_rng(0)
    images = {n: rng.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8) for n in (3, 5, 4)}
    base = "stl10_binary"
    columns = {n: a.transpose(0, 1, 3, 2).tobytes() for n, a in images.items()}  # as the set has it
    members = {
        f"{base}/train_X.bin": columns[3],
        f"{base}/train_y.bin": bytes([1, 2, 10]),
        f"{base}/unlabeled_X.bin": columns[5],
        f"{base}/test_X.bin": columns[4],
        f"{base}/test_y.bin": bytes([4, 3, 2, 1]),
        f"{base}/class_names.txt": "\n".join(official.STL10).encode(),
        f"{base}/fold_indices.txt": b"",
    }
    path = write_tar(tmp_path / "archives/stl10_binary.tar.gz", members, "w:gz")
    monkeypatch.setattr(theirs.STL10, "tgz_md5", md5(path))
    for field in ("train_list", "test_list"):
        listed = [[name, None] for name, _ in getattr(theirs.STL10, field)]
        monkeypatch.setattr(theirs.STL10, field, listed)
    written = write_known("stl10", tmp_path / "out", source=path.parent)
    assert written.samples == {"train": 3, "train-unlabelled": 5, "test": 4}
    assert [path.name for path in written.shards] == [
        "train-000000.tar",
        "train-unlabelled-000000.tar",
        "test-000000.tar",
    ]
    found = read(tmp_path / "out")
    assert labels(found["train"]) == [0, 1, 9, *[-1] * 5]
    assert labels(found["test"]) == [3, 2, 1, 0]
    np.testing.assert_array_equal(pixels(found["train"][3]), images[5][0].transpose(1, 2, 0))
    check_class_order(load_prompts("stl10"), find_shards([str(tmp_path / "out")]))
    words = ("data", "stl10", "--from", path.parent, "--json", "--out")
    fewer = beamclip(*words, tmp_path / "fewer", "--no-unlabelled")
    assert json.loads(fewer.out)["samples"] == {"train": 3, "test": 4}
    more = beamclip(*words, tmp_path / "more", "--unlabelled")
    assert json.loads(more.out)["samples"] == written.samples


@pytest.fixture
def flowers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Oxford's three files: 6 images, 2 for each split."""
    folder = tmp_path / "archives"
    images = {f"jpg/image_{i:05d}.jpg": jpeg(i, i) for i in range(1, 7)}
    files = {"image": write_tar(folder / "102flowers.tgz", images, "w:gz")}
    files["label"], files["setid"] = folder / "imagelabels.mat", folder / "setid.mat"
    files["label"].write_bytes(mat(labels=np.array([[77, 1, 102, 59, 5, 6]])))
    files["setid"].write_bytes(
        mat(trnid=np.array([[6, 1]]), valid=np.array([[2, 3]]), tstid=np.array([[4, 5]]))
    )
    sums = {kind: (path.name, md5(path)) for kind, path in files.items()}
    monkeypatch.setattr(theirs.Flowers102, "_file_dict", sums)
    return folder


def test_flowers_keep_their_files_and_the_three_splits(flowers: Path, tmp_path: Path) -> None:
    written = write_known("flowers102", tmp_path / "out", source=flowers)
    assert written.samples == {"train": 2, "val": 2, "test": 2}
    found = read(tmp_path / "out")
    assert [sample.key for sample in found["train"]] == ["image_00006", "image_00001"]
    assert labels(found["train"]) == [5, 76]
    assert labels(found["test"]) == [58, 4]
    assert found["test"][0].image().content == jpeg(4, 4)
    classes = (tmp_path / "out/classes.txt").read_text().splitlines()
    assert classes == [item.name for item in load_prompts("flowers102").classes]


def test_pets_are_read_from_images_and_annotations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "archives"
    raw = official.PETS37
    lines = [f"{n}_1 {i} 1 1" for i, n in enumerate(raw, 1)]
    images = {f"images/{name}_1.jpg": jpeg(i, i) for i, name in enumerate(raw)}
    lists = {f"annotations/{n}.txt": "\n".join(lines).encode() for n in ("trainval", "test")}
    packed = [
        write_tar(folder / "images.tar.gz", images, "w:gz"),
        write_tar(folder / "annotations.tar.gz", lists, "w:gz"),
    ]
    resources = tuple((f"https://example.org/{path.name}", md5(path)) for path in packed)
    monkeypatch.setattr(theirs.OxfordIIITPet, "_RESOURCES", resources)
    written = write_known("pets37", tmp_path / "out", source=folder)
    assert written.samples == {"train": 37, "test": 37}
    check_class_order(load_prompts("pets37"), find_shards([str(tmp_path / "out")]))
    classes = (tmp_path / "out/classes.txt").read_text().splitlines()
    assert classes == [item.name for item in load_prompts("pets37").classes]
    assert labels(read(tmp_path / "out")["test"]) == list(range(37))


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """Fashion-MNIST's four files, packed anew, with three images in each split."""
    folder, rng = tmp_path / "fashion", np.random.default_rng(0)
    folder.mkdir()
    for stem in ("train", "t10k"):
        images = idx(rng.integers(0, 256, (3, 28, 28)))
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(gz(images))
        (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gz(idx(np.array([9, 0, 4]))))
    return folder


def test_fashion_mnist_may_be_packed_anew_which_is_told(
    fashion: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = write_known("fashion-mnist", tmp_path / "out", source=fashion)
    assert written.samples == {"train": 3, "test": 3}
    assert "was packed anew" in caplog.text
    found = read(tmp_path / "out")
    assert labels(found["test"]) == [9, 0, 4]
    first = np.random.default_rng(0).integers(0, 256, (3, 28, 28))[0]
    assert (pixels(found["train"][0])[:, :, 1] == first).all()


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is absent")
def test_fashion_mnist_as_debian_has_it_is_converted_whole(tmp_path: Path) -> None:
    written = write_known("fashion-mnist", tmp_path / "out", source=DEBIAN, per_shard=10_000)
    assert written.samples == {"train": 60_000, "test": 10_000}
    check_class_order(load_prompts("fashion-mnist"), find_shards([str(tmp_path / "out")]))
    for split, stem in (("train", "train"), ("test", "t10k")):
        samples = read(tmp_path / "out")[split]
        packed = DEBIAN / f"{stem}-labels-idx1-ubyte.gz"
        wanted = np.frombuffer(gzip.decompress(packed.read_bytes()), np.uint8, offset=8)
        assert labels(samples) == wanted.tolist()
        raw = gzip.decompress((DEBIAN / f"{stem}-images-idx3-ubyte.gz").read_bytes())
        images = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)
        for place in range(0, len(samples), 997):
            assert (pixels(samples[place])[:, :, 0] == images[place]).all()


# --- files that are not there, or not right ------------------------------------------------------


def refusal(name: str, source: Path, out: Path) -> str:
    with pytest.raises(DataError) as caught:
        write_known(name, out, source=source)
    assert not out.exists()
    assert not list(out.parent.glob(".out.*"))
    return str(caught.value)


def test_a_missing_file_is_named_with_its_sum_and_address(flowers: Path, tmp_path: Path) -> None:
    (flowers / "setid.mat").unlink()
    message = refusal("flowers102", flowers, tmp_path / "out")
    assert "lacks setid.mat; it holds 102flowers.tgz, imagelabels.mat" in message
    assert "robots.ox.ac.uk/~vgg/data/flowers/102/setid.mat" in message
    assert "no folder" in refusal("flowers102", tmp_path / "nowhere", tmp_path / "out")


def test_a_cut_archive_is_refused_by_its_sum_and_left_as_it_is(
    cifar10: Path, tmp_path: Path
) -> None:
    whole = cifar10.read_bytes()
    cifar10.write_bytes(whole[: len(whole) // 2])
    message = refusal("cifar10", cifar10.parent, tmp_path / "out")
    assert "is damaged or another file: its md5 is" in message
    assert theirs.CIFAR10.url in message
    assert cifar10.read_bytes() == whole[: len(whole) // 2]


def test_an_archive_that_holds_a_pickle_of_another_kind_is_never_opened(
    cifar10: Path, tmp_path: Path
) -> None:
    """The sum stands between a foreign pickle and its execution."""

    class Evil:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (Path.touch, (tmp_path / "ran",))

    base = "cifar-10-batches-py"
    write_tar(cifar10, {f"{base}/data_batch_1": pickle.dumps(Evil())}, "w:gz")
    refusal("cifar10", cifar10.parent, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_a_cut_copy_of_fashion_mnist_is_refused(fashion: Path, tmp_path: Path) -> None:
    path = fashion / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path} is damaged" in refusal("fashion-mnist", fashion, tmp_path / "out")


@pytest.mark.parametrize(
    "content",
    [
        idx(np.zeros((3, 28, 28))),
        b"",
        b"\0\0\x08\x01\0\0\0\x03\0",
        b"no idx at all",
        idx(np.ones(2)),
    ],
    ids=["images", "empty", "short", "foreign", "fewer"],
)
def test_a_file_of_another_kind_under_the_right_name_is_an_error(
    fashion: Path, tmp_path: Path, beamclip: Invoke, content: bytes
) -> None:
    """As images where labels should be: torchvision asserts."""
    (fashion / "train-labels-idx1-ubyte.gz").write_bytes(gz(content))
    outcome = beamclip("data", "fashion-mnist", "--from", fashion, "--out", tmp_path / "out")
    assert outcome.code == 1
    fewer = "split train has 3 images and 2 labels"
    assert (fewer if content == idx(np.ones(2)) else "cannot read fashion-mnist") in outcome.err
    assert not (tmp_path / "out").exists()


def test_an_unpacked_folder_without_all_images_is_told(flowers: Path, tmp_path: Path) -> None:
    (flowers / "jpg").mkdir()
    for number in (1, 2, 3, 4, 5):
        (flowers / f"jpg/image_{number:05d}.jpg").write_bytes(jpeg(number, number))
    message = refusal("flowers102", flowers, tmp_path / "out")
    assert "image_00006.jpg is missing" in message


def test_without_a_network_the_files_to_bring_are_named(
    tmp_path: Path, beamclip: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(theirs.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    outcome = beamclip("data", "cifar10", "--out", tmp_path / "out")
    assert outcome.code == 1
    assert "cannot read cifar10 in data/downloads/cifar10" in outcome.err
    assert f"cifar-10-python.tar.gz (md5 {theirs.CIFAR10.tgz_md5})" in outcome.err
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_is_downloaded_and_kept(
    cifar10: Path, tmp_path: Path, beamclip: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_there = write_known("cifar10", tmp_path / "from", source=cifar10.parent)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with served(cifar10.parent) as address:
        monkeypatch.setattr(theirs.CIFAR10, "url", f"{address}/{cifar10.name}")
        done = beamclip("data", "cifar10", "--out", tmp_path / "out")
        assert done.code == 0, done.err
    again = beamclip("data", "cifar10", "--out", tmp_path / "again")  # the server is gone
    assert again.code == 0, again.err
    assert (tmp_path / "data/downloads/cifar10" / cifar10.name).read_bytes() == cifar10.read_bytes()
    for name in ("out", "again"):
        assert digests(sorted((tmp_path / name).glob("*.tar"))) == digests(
            sorted(from_there.shards)
        )


def test_a_download_of_another_sum_is_refused(
    cifar10: Path, tmp_path: Path, beamclip: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(theirs.CIFAR10, "tgz_md5", "0" * 32)
    with served(cifar10.parent) as address:
        monkeypatch.setattr(theirs.CIFAR10, "url", f"{address}/{cifar10.name}")
        outcome = beamclip("data", "cifar10", "--out", tmp_path / "out")
    assert outcome.code == 1
    assert "cannot read cifar10 in data/downloads/cifar10" in outcome.err
    assert not (tmp_path / "out").exists()


def test_what_has_to_be_unpacked_is_beside_the_shards_and_goes_in_the_end(
    cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STL-10 unpacks to 2.6 GB, more than many a /tmp holds."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    write_known("cifar10", tmp_path / "deep/er/out", source=cifar10.parent)
    assert [path.name for path in (tmp_path / "deep/er").iterdir()] == ["out"]


def test_a_folder_that_is_taken_is_told_before_anything_is_downloaded(
    tmp_path: Path, beamclip: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/note").write_text("x")
    outcome = beamclip("data", "cifar10", "--out", tmp_path / "out")
    assert "is not empty: name a new folder" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_written_twice_are_the_same_bytes(flowers: Path, tmp_path: Path) -> None:
    one, two = (write_known("flowers102", tmp_path / n, source=flowers) for n in ("one", "two"))
    assert digests(one.shards) == digests(two.shards)
