"""ImageNet-1K and ImageNet-21K, streamed from the official tars or read from folders."""

import contextlib
import gzip
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from pipeline.datasets.archives import listed
from pipeline.datasets.sets import Dataset, Pairs, Place, Split
from pipeline.datasets.tars import members_at, members_of
from pipeline.errors import DataError, SampleError, ShardError
from pipeline.imagenet import class_names, synsets
from pipeline.shards import Sample, Shard, content_digest, find_shards, read_samples

_TRAIN, _VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_WHOLE = ("winter21_whole.tar.gz", "winter21_whole.tar", "fall11_whole.tar", "imagenet21k.tar")
_IMAGES = (".jpeg", ".jpg", ".png")
_TWICE, _ELSEWHERE = "duplicates", "images excluded"  # why an image is left out

Files = Iterator[tuple[str, bytes]]  # (file name, content)
Synsets = Iterator[tuple[str, Files]]  # (WordNet id, its images)


def imagenet1k(place: Place) -> Dataset:
    """Return ImageNet-1K (ILSVRC 2012): 1,281,167 train images; the 50,000 of validation are test.

    The folder holds the official tars (train, val and the devkit, which has the labels of val), or
    train/ and val/ with a sub-folder for each class. Nothing is unpacked to disk.
    """
    source = _source(place, f"{_TRAIN}, {_VAL} and {_DEVKIT}, or train/ and val/ of class folders")
    wnids = synsets()
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    if (source / _TRAIN).exists():
        _require(source, (_TRAIN, _VAL, _DEVKIT))
        train = partial(_samples, partial(_synsets_of_tar, source / _TRAIN), labels)
        test = partial(_val_samples, source, labels, place.scratch)
    else:
        _require(source, ("train", "val"))
        for split in ("train", "val"):
            _check_folders(source / split, wnids)
        train = partial(_samples, partial(_synsets_of_folder, source / "train"), labels)
        test = partial(_samples, partial(_synsets_of_folder, source / "val"), labels)
    return Dataset((Split("train", train), Split("test", test)), class_names())


def imagenet21k(
    place: Place, *, exclude_synsets: str | None = None, exclude_images: str | None = None
) -> Dataset:
    """Return ImageNet-21K, all of it train: fall 2011 (21,841 synsets) or winter 2021 (19,167).

    The folder holds the release's one tar (of a tar for each synset), those tars, or a folder for
    each synset. A label is a synset's place among the 21,841 of fall 2011 in order, without those
    left out, so both releases and parts of them have the same. exclude_synsets: "imagenet-1k" or a
    file of ids, one a line. Images of the same bytes are taken once, and not at all if an excluded
    synset has them, which is read first for that (some 100 bytes of memory for each image).
    exclude_images: shards, as `--shards` names them, whose images are left out by their bytes.
    """
    source = _source(place, f"{_WHOLE[0]} or {_WHOLE[2]}, or its synsets as n*.tar or n*/")
    others = find_shards([exclude_images]) if exclude_images else []
    left_out = {"synsets excluded": 0, _TWICE: 0, **({_ELSEWHERE: 0} if others else {})}
    excluded = _excluded(exclude_synsets)
    kept = [wnid for wnid in synsets("imagenet-22k") if wnid not in excluded]
    labels = {wnid: label for label, wnid in enumerate(kept)}
    found = partial(_any_synsets, source)
    rest = partial(_samples, partial(_without, found, excluded, left_out), labels)
    taken = partial(_taken, found, excluded, others)
    samples = partial(_once, rest, taken, left_out)
    return Dataset((Split("train", samples),), tuple(kept), left_out=left_out)


def _source(place: Place, wanted: str) -> Path:
    if place.source is None or not place.source.is_dir():
        found = "none was given" if place.source is None else f"{place.source} is no folder"
        raise DataError(
            f"name the folder with {wanted} by --from ({found}): ImageNet is given to those who "
            "ask at image-net.org, and cannot be downloaded from here"
        )
    return place.source


def _require(source: Path, names: Iterable[str]) -> None:
    if missing := [name for name in names if not (source / name).exists()]:
        raise DataError(f"{source} lacks {', '.join(missing)}; it holds {listed(source)}")


def _check_folders(folder: Path, wnids: Iterable[str]) -> None:
    """Refuse a split that lacks a class: labels would be right, scores would not."""
    if missing := [wnid for wnid in wnids if not (folder / wnid).is_dir()]:
        raise DataError(
            f"{folder} lacks {len(missing)} of 1,000 class folders ({missing[0]}, ...); "
            f"it holds {listed(folder)}. Images of val, if they lie in one folder, are sorted by "
            f"the labels of {_DEVKIT}: give the official tars instead"
        )


def _samples(found: Callable[[], Synsets], labels: dict[str, int]) -> Pairs:
    """Yield the images of each synset; the key is the file's name, and begins with the synset.

    The official names do; before any other the synset is set, as another one may have it too.
    """
    for wnid, files in found():
        if wnid not in labels:
            raise DataError(f"{wnid!r} is no synset of this dataset: what lies there is another")
        for name, content in files:
            own = name if name.startswith(f"{wnid}_") else f"{wnid}/{name}"
            yield _sample(own, content, labels[wnid])


def _sample(name: str, content: bytes, label: int) -> tuple[str, dict[str, bytes]]:
    stem, _, extension = name.rpartition(".")
    members = {extension.lower().replace("jpeg", "jpg"): content, "cls": b"%d" % label}
    return stem.replace(".", "_"), members  # at its first dot a key would end


def _any_synsets(source: Path) -> Synsets:
    """Yield synsets from the one tar, from a tar each, or from folders."""
    whole = next((source / name for name in _WHOLE if (source / name).exists()), None)
    tars = sorted(source.glob("n[0-9]*.tar"))
    if whole is not None:
        return _synsets_of_tar(whole)
    if tars:
        return ((path.stem, _images(members_at(path))) for path in tars)
    if any(source.glob("n[0-9]*/")):
        return _synsets_of_folder(source)
    raise DataError(f"{source} holds no synset (n*.tar, n*/ or one of {', '.join(_WHOLE)})")


def _synsets_of_tar(path: Path) -> Synsets:
    """Yield each synset of a tar of tars, which is read once, in its own order."""
    packed = path.suffix == ".gz"
    size = None if packed else path.stat().st_size
    with gzip.open(path) if packed else open(path, "rb") as file:
        try:
            for name, content in members_of(str(path), file, size):
                if name.endswith(".tar"):
                    inner = members_of(f"{path}: {name}", io.BytesIO(content), len(content))
                    yield Path(name).stem, _images(inner)
        except (EOFError, gzip.BadGzipFile) as error:
            raise ShardError(f"{path} is damaged or incomplete: {error}; get it again") from None


def _images(members: Files) -> Files:
    return ((Path(name).name, content) for name, content in members if _is_image(Path(name)))


def _is_image(path: Path) -> bool:
    """Tell an image by its name; a hidden one is what a file manager left behind."""
    return path.suffix.lower() in _IMAGES and not path.name.startswith(".")


def _synsets_of_folder(source: Path) -> Synsets:
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        images = sorted(path for path in folder.rglob("*") if _is_image(path))
        yield (
            folder.name,
            ((path.relative_to(folder).as_posix(), path.read_bytes()) for path in images),
        )


def _val_samples(source: Path, labels: dict[str, int], scratch: Path) -> Pairs:
    """Yield the validation images by number, with the devkit's labels."""
    from torchvision.datasets.imagenet import load_meta_file, parse_devkit_archive

    (scratch / "devkit").mkdir(exist_ok=True)
    try:
        parse_devkit_archive(scratch / "devkit", str(source / _DEVKIT))
    except Exception as error:  # torchvision checks its md5; scipy, gzip and tar have faults of own
        raise DataError(f"cannot read {source / _DEVKIT}: {error}") from None
    _, wnids = load_meta_file(scratch / "devkit")
    seen = 0
    for name, content in _images(members_at(source / _VAL)):
        number = Path(name).stem.rpartition("_")[2]
        if not number.isdigit() or not 0 < int(number) <= len(wnids):
            raise DataError(f"{source / _VAL}: {name} is not one of images 1 to {len(wnids)}")
        yield _sample(name, content, labels[wnids[int(number) - 1]])
        seen += 1
    if seen != len(wnids):
        raise DataError(f"{source / _VAL} holds {seen} images, the devkit has {len(wnids)} labels")


def _excluded(name: str | None) -> frozenset[str]:
    if name is None:
        return frozenset()
    if name == "imagenet-1k":
        return frozenset(synsets())
    try:
        wnids = frozenset(Path(name).read_text(encoding="utf-8").split())
    except (OSError, ValueError) as error:
        raise DataError(f"--exclude-synsets takes imagenet-1k or a file of ids: {error}") from None
    if unknown := sorted(wnids - set(synsets("imagenet-22k"))):
        raise DataError(f"{name}: {unknown[0]!r} is no synset of ImageNet-21K (as n01440764)")
    return wnids


def _without(
    found: Callable[[], Synsets], excluded: frozenset[str], left_out: dict[str, int]
) -> Synsets:
    left_out["synsets excluded"] = 0
    for wnid, files in found():
        if wnid in excluded:
            left_out["synsets excluded"] += 1
        else:
            yield wnid, files


def _taken(
    found: Callable[[], Synsets], wnids: frozenset[str], shards: Sequence[Shard]
) -> dict[str, set[int]]:
    """Return the digests of all images of some synsets, and of some shards, by the reason."""
    chosen = (files for wnid, files in found() if wnid in wnids) if wnids else ()
    twice = {content_digest(content) for files in chosen for _, content in files}
    elsewhere = (sample for shard in shards for sample in read_samples(shard))
    return {_TWICE: twice, _ELSEWHERE: set(_image_digests(elsewhere))}


def _image_digests(samples: Iterable[Sample]) -> Iterator[int]:
    for sample in samples:
        with contextlib.suppress(SampleError):  # none, or several: no image of ours is that
            yield content_digest(sample.image().content)


def _once(
    samples: Callable[[], Pairs],
    taken: Callable[[], dict[str, set[int]]],
    left_out: dict[str, int],
) -> Pairs:
    """Yield samples whose image, byte for byte, is not among those taken, nor has come before."""
    seen = taken()
    left_out.update({reason: 0 for reason in seen if reason in left_out})
    for key, members in samples():
        digest = content_digest(next(iter(members.values())))
        reason = next((reason for reason, digests in seen.items() if digest in digests), None)
        if reason is not None:
            left_out[reason] += 1
            continue
        seen[_TWICE].add(digest)
        yield key, members
