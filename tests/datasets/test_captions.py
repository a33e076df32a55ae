"""Images with captions become shards that carry both."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.datasets.known import write_known
from pipeline.errors import BeamclipError
from pipeline.shards import find_shards
from pipeline.tar import walk_tar
from tests.datasets.archives import jpeg, write_tar
from tests.datasets.written import digests, read


def members(folder: Path, split: str = "train") -> dict[str, bytes]:
    """Return every member of a split's shards by its name."""
    found = {}
    for shard in find_shards([str(folder)]):
        if shard.split == split:
            with open(shard.path, "rb") as file:
                for entry in walk_tar(str(shard), file, shard.size_bytes):
                    found[entry.name] = entry.read()
    return found


def refusal(name: str, source: Path | None, out: Path) -> str:
    with pytest.raises(BeamclipError) as caught:
        write_known(name, out, source=source)
    assert not out.exists()
    return str(caught.value)


# --- img2dataset ---------------------------------------------------------------------------------


@pytest.fixture
def downloaded(tmp_path: Path) -> Path:
    """Two tars of img2dataset; of the second, an image could not be downloaded."""
    source = tmp_path / "cc3m"
    for shard in range(2):
        tar = {}
        for i in range(2):
            key, dead = f"{shard:05d}{i:04d}", (shard, i) == (1, 0)
            said = {"caption": f"a café {i}", "url": "http://x/1.jpg", "key": key, "width": 40}
            said["status"] = "failed_to_download" if dead else "success"
            if not dead:
                tar[f"{key}.jpg"] = jpeg(i, shard * 10 + i)
            tar[f"{key}.json"] = json.dumps(said).encode()
            tar[f"{key}.txt"] = f"a café {i}".encode()
        write_tar(source / f"{shard:05d}.tar", tar)
    (source / "00000_stats.json").write_text("{}")
    return source


@pytest.mark.parametrize("name", ["cc3m", "cc12m"])
def test_what_was_downloaded_is_train_and_dead_links_are_counted(
    downloaded: Path, tmp_path: Path, name: str
) -> None:
    written = write_known(name, tmp_path / "out", source=downloaded)
    assert written.samples == {"train": 3}
    assert written.left_out == {"no image": 1}
    found = members(tmp_path / "out")
    assert found["000010001.txt"].decode() == "a café 1"
    said = json.loads(found["000010001.json"])
    assert said["captions"] == ["a café 1"]
    assert said["url"] == "http://x/1.jpg"
    assert found["000010001.jpg"] == jpeg(1, 11)
    assert [sample.label() for sample in read(tmp_path / "out")["train"]] == [-1, -1, -1]
    again = write_known(name, tmp_path / "again", source=downloaded)
    assert digests(again.shards) == digests(written.shards)


BAD_JSON = (b"{", b"[]", b"[" * 100_000, b'{"caption": "x\\ud800"}', b"\xff")


@pytest.mark.parametrize("bad", BAD_JSON, ids=range(len(BAD_JSON)))
def test_one_unreadable_text_costs_the_other_nothing_and_is_counted(
    tmp_path: Path, bad: bytes
) -> None:
    said = json.dumps({"caption": "by json", "url": "u"}).encode()
    texts = {
        "a": {"json": bad, "txt": "café".encode()},
        "b": {"json": said, "txt": b"caf\xe9"},
        "c": {"json": bad, "txt": b"\xff"},
        "d": {"json": said, "txt": b""},
        "e": {},
    }
    tar = {}
    for i, (key, its) in enumerate(texts.items()):
        tar[f"{key}.jpg"] = jpeg(i, i)
        tar |= {f"{key}.{name}": content for name, content in its.items()}
    write_tar(tmp_path / "cc3m" / "00000.tar", tar)
    for out, val in (("out", 0.0), ("parted", 0.4)):
        written = write_known("cc3m", tmp_path / out, source=tmp_path / "cc3m", val=val)
        assert sum(written.samples.values()) == 5
        assert written.left_out == {"no image": 0, "unreadable .json": 2, "unreadable .txt": 2}
    found = members(tmp_path / "out")
    assert [found[f"{key}.txt"].decode() for key in texts] == [
        *("café", "by json", "", "by json", ""),
    ]
    captions = [json.loads(found[f"{key}.json"])["captions"] for key in texts]
    assert captions == [["café"], ["by json"], [], ["by json"], []]
    assert json.loads(found["b.json"])["url"] == "u"


def test_a_cut_tar_or_none_is_an_error(downloaded: Path, tmp_path: Path) -> None:
    path = downloaded / "00001.tar"
    path.write_bytes(path.read_bytes()[:2000])
    assert "00001.tar" in refusal("cc3m", downloaded, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "output_format=webdataset" in refusal("cc3m", tmp_path / "empty", tmp_path / "out")
    assert "none was given" in refusal("cc3m", None, tmp_path / "out")


# --- Karpathy's splits ---------------------------------------------------------------------------


def entry(split: str, number: int, **fields: Any) -> dict[str, Any]:
    return {
        "filepath": "val2014",
        "filename": f"COCO_val2014_{number:012d}.jpg",
        "split": split,
        "sentences": [{"raw": f"A dog, {number}.", "tokens": []}, {"raw": " The dog. "}],
        "cocoid": number,
        "imgid": number + 100,
        **fields,
    }


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Five images in two folders, with the json that names them."""
    source = tmp_path / "coco"
    entries = [
        entry(split, i) for i, split in enumerate(("test", "train", "restval", "val", "train"))
    ]
    for i in range(5):
        folder = source / ("train2014" if i % 2 else "val2014")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / entry("", i)["filename"]).write_bytes(jpeg(i, i))
    (source / "dataset_coco.json").write_text(json.dumps({"images": entries, "dataset": "coco"}))
    return source


def test_karpathys_splits_carry_all_captions(coco: Path, tmp_path: Path) -> None:
    written = write_known("coco", tmp_path / "out", source=coco)
    assert written.samples == {"train": 3, "val": 1, "test": 1}
    found = members(tmp_path / "out", "test")
    stem = "COCO_val2014_000000000000"
    assert found[f"{stem}.txt"] == b"A dog, 0."
    said = json.loads(found[f"{stem}.json"])
    assert said["captions"] == ["A dog, 0.", "The dog."]
    assert (said["cocoid"], said["imgid"]) == (0, 100)
    assert found[f"{stem}.jpg"] == jpeg(0, 0)
    keys = [sample.key for sample in read(tmp_path / "out")["train"]]
    assert keys == [f"COCO_val2014_{i:012d}" for i in (1, 2, 4)]


def test_missing_images_are_named_before_any_is_written(coco: Path, tmp_path: Path) -> None:
    for number in (1, 3):
        (coco / "train2014" / entry("", number)["filename"]).unlink()
    message = refusal("coco", coco, tmp_path / "out")
    assert "2 of 5 images are not below" in message
    assert "COCO_val2014_000000000001.jpg, COCO_val2014_000000000003.jpg" in message
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"images": [{"filename": "a.jpg"}]}',
        json.dumps({"images": [entry("other", 1)]}),
        json.dumps({"images": [entry("train", 1, sentences=["a dog"])]}),
    ],
)
def test_a_json_of_another_kind_is_refused(coco: Path, tmp_path: Path, content: str) -> None:
    (coco / "dataset_coco.json").write_text(content)
    assert "is not in Karpathy's format" in refusal("coco", coco, tmp_path / "out")


def test_flickr_has_a_json_of_its_own_name(coco: Path, tmp_path: Path) -> None:
    assert "lacks dataset_flickr30k.json" in refusal("flickr30k", coco, tmp_path / "out")
    (coco / "dataset_coco.json").rename(coco / "dataset_flickr30k.json")
    assert write_known("flickr30k", tmp_path / "out", source=coco).samples["val"] == 1
