"""Images with captions: img2dataset's output (CC3M), Karpathy's splits (COCO, Flickr30k)."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.captions import object_in, text_in
from pipeline.datasets.archives import listed
from pipeline.datasets.sets import Dataset, Pairs, Place, Split
from pipeline.datasets.tars import keys_at
from pipeline.errors import DataError, SampleError
from pipeline.shards import IMAGE_EXTENSIONS

_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def img2dataset(place: Place) -> Dataset:
    """Return what img2dataset wrote (output_format=webdataset), all of it train.

    A sample without an image, as of a dead link, is left out and counted. The caption is in `.txt`,
    and in `.json` with what else img2dataset says of it; one of the two that cannot be read is left
    out and counted too, and costs the other nothing.
    """
    source = _folder(place, "img2dataset's 00000.tar, 00001.tar, ...")
    tars = sorted(source.glob("*.tar"))
    if not tars:
        raise DataError(
            f"{source} holds no tar (it holds {listed(source)}); expected img2dataset's output "
            "with output_format=webdataset"
        )
    left_out = {"no image": 0}
    return Dataset((Split("train", partial(_downloaded, tars, left_out)),), left_out=left_out)


def karpathy(place: Place, *, name: str) -> Dataset:
    """Return images with captions by Karpathy's splits; restval counts as train.

    name: of the json without its ending, as in "dataset_coco". The folder holds it, and the images
    as it names them (`val2014/COCO_val2014_000000391895.jpg`), at any depth. All captions are in
    `.json`, the first one in `.txt`. Raises DataError naming what is missing before any is written.
    """
    source = _folder(place, f"{name}.json (Karpathy's splits) and the images that it names")
    entries = _entries(source / f"{name}.json", source)
    files = _images(source, entries)
    splits: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        splits.setdefault(_SPLITS[entry["split"]], []).append(entry)
    return Dataset(
        tuple(
            Split(split, partial(_captioned, splits[split], files), len(splits[split]))
            for split in ("train", "val", "test")
            if split in splits
        )
    )


def _folder(place: Place, wanted: str) -> Path:
    if place.source is None or not place.source.is_dir():
        found = "none was given" if place.source is None else f"{place.source} is no folder"
        raise DataError(
            f"name the folder with {wanted} by --from ({found}): this dataset cannot be downloaded "
            "from here; data/README.md says where it comes from"
        )
    return place.source


# --- img2dataset ---------------------------------------------------------------------------------


def _downloaded(tars: list[Path], left_out: dict[str, int]) -> Pairs:
    left_out.clear()  # the splits of --val read it twice
    left_out["no image"] = 0
    for tar in tars:
        for key, members in keys_at(tar):
            image = next((name for name in IMAGE_EXTENSIONS if name in members), None)
            if image is None:
                left_out["no image"] += 1
                continue
            yield key, {image: members[image], **_text_members(members, left_out)}


def _text_members(members: Mapping[str, bytes], left_out: dict[str, int]) -> dict[str, bytes]:
    """Return the caption as text, and all that is known as JSON; count what cannot be read."""
    known, text = {}, ""
    try:
        known = _known(members.get("json", b"{}"))
    except SampleError:
        left_out["unreadable .json"] = left_out.get("unreadable .json", 0) + 1
    try:
        text = text_in(members.get("txt", b""))
    except SampleError:
        left_out["unreadable .txt"] = left_out.get("unreadable .txt", 0) + 1
    text = text or str(known.get("caption") or "")
    content = {"captions": [text] if text else [], **known}
    return {"txt": text.encode(), "json": json.dumps(content, ensure_ascii=False).encode()}


def _known(content: bytes) -> dict[str, Any]:
    """Return what img2dataset's `.json` says; raises SampleError if it cannot be written again."""
    known = object_in(content)
    try:
        json.dumps(known, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # half a surrogate pair
        raise SampleError("bad-json", str(error)) from None
    return known


# --- Karpathy's splits ---------------------------------------------------------------------------


def _entries(path: Path, source: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise DataError(f"{source} lacks {path.name}; it holds {listed(source)}")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["images"]
        for entry in entries:
            _ = entry["filename"], _SPLITS[entry["split"]], _captions(entry)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not in Karpathy's format ({type(error).__name__}: {error}); expected "
            "images: [{filename, split, sentences: [{raw}]}]"
        ) from None
    if not entries:
        raise DataError(f"{path} lists no image")
    return list(entries)


def _captions(entry: Mapping[str, Any]) -> list[str]:
    return [str(sentence["raw"]).strip() for sentence in entry["sentences"]]


def _images(source: Path, entries: list[dict[str, Any]]) -> dict[str, Path]:
    """Return where each named file lies; raises DataError naming those that lie nowhere."""
    wanted = {entry["filename"] for entry in entries}
    found = {path.name: path for path in source.rglob("*") if path.name in wanted}
    if missing := sorted(wanted - found.keys()):
        raise DataError(
            f"{len(missing)} of {len(wanted)} images are not below {source}: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    return found


def _captioned(entries: list[dict[str, Any]], files: Mapping[str, Path]) -> Pairs:
    for entry in entries:
        path, captions = files[entry["filename"]], _captions(entry)
        known = {str(name): entry[name] for name in ("cocoid", "imgid") if name in entry}
        content: dict[str, Any] = {"captions": captions, "path": entry["filename"], **known}
        members = {
            path.suffix[1:].lower(): path.read_bytes(),
            "txt": (captions[0] if captions else "").encode(),
            "json": json.dumps(content, ensure_ascii=False).encode(),
        }
        yield path.stem.replace(".", "_"), members
