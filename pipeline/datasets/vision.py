"""Datasets that torchvision reads: CIFAR, STL10, Flowers102, Pets37 and Fashion-MNIST."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.datasets.archives import Archive, Archives
from pipeline.datasets.pixels import png
from pipeline.datasets.sets import Dataset, Pairs, Place, Split
from pipeline.errors import DataError

_TWO = ("train", "test")


def cifar10(place: Place) -> Dataset:
    """Return CIFAR-10 (Krizhevsky 2009): 50,000 train and 10,000 test images of 32 px."""
    return _cifar("CIFAR10", "cifar10", place)


def cifar100(place: Place) -> Dataset:
    """Return CIFAR-100 (Krizhevsky 2009): 50,000 train and 10,000 test images of 32 px."""
    return _cifar("CIFAR100", "cifar100", place)


def _cifar(kind: str, name: str, place: Place) -> Dataset:
    from torchvision import datasets

    cls = getattr(datasets, kind)
    archive = Archive(cls.filename, cls.tgz_md5, cls.url, unpacked=cls.base_folder)
    archives = Archives(name, (archive,), place)
    parts = {split: archives.read(partial(cls, train=split == "train")) for split in _TWO}
    splits = tuple(_array_split(s, part.data, part.targets) for s, part in parts.items())
    return Dataset(splits, tuple(c.replace("_", " ") for c in parts["train"].classes))


def fashion_mnist(place: Place) -> Dataset:
    """Return Fashion-MNIST (Xiao et al. 2017): 60,000 train and 10,000 test images, grey, 28 px."""
    from torchvision.datasets import FashionMNIST

    listed = [
        Archive(name, md5, FashionMNIST.mirrors[0] + name, "FashionMNIST/raw", name[:-3], True)
        for name, md5 in FashionMNIST.resources
    ]
    archives = Archives("fashion-mnist", tuple(listed), place)
    splits = []
    for split in _TWO:
        part = archives.read(partial(FashionMNIST, train=split == "train"))
        splits.append(_array_split(split, part.data.numpy(), part.targets.tolist()))
    return Dataset(tuple(splits), tuple(FashionMNIST.classes))


def stl10(place: Place, *, unlabelled: bool = True) -> Dataset:
    """Return STL-10 (Coates et al. 2011): 5,000 train and 8,000 test images of 96 px.

    unlabelled: also the 100,000 without labels, as train shards of their own.
    """
    from torchvision.datasets import STL10

    archive = Archive(STL10.filename, STL10.tgz_md5, STL10.url, unpacked=STL10.base_folder)
    archives = Archives("stl10", (archive,), place)
    splits, classes = list[Split](), tuple[str, ...]()
    for split in ("train", *(["unlabeled"] if unlabelled else []), "test"):
        part = archives.read(partial(STL10, split=split))
        pixels = part.data.transpose(0, 2, 3, 1)
        if split == "unlabeled":
            splits.append(_array_split("train", pixels, None, part="unlabelled"))
        else:
            splits.append(_array_split(split, pixels, part.labels.tolist()))
            classes = tuple(part.classes)
    return Dataset(tuple(splits), classes)


def flowers102(place: Place) -> Dataset:
    """Return Oxford's 102 flowers (Nilsback and Zisserman 2008): 1,020 / 1,020 / 6,149 images."""
    from torchvision.datasets import Flowers102

    base = "flowers-102"
    listed = [
        Archive(name, md5, Flowers102._download_url_prefix + name, base, unpacked)
        for (name, md5), unpacked in zip(
            Flowers102._file_dict.values(), ("jpg", "", ""), strict=True
        )
    ]
    archives = Archives("flowers102", tuple(listed), place)
    splits = []
    for split in ("train", "val", "test"):
        part = archives.read(partial(Flowers102, split=split))
        splits.append(_file_split(split, part._image_files, part._labels))
    # torchvision doubts the name of its pink-yellow dahlia, with a question mark.
    return Dataset(tuple(splits), tuple(name.removesuffix("?") for name in Flowers102.classes))


def pets37(place: Place) -> Dataset:
    """Return the Oxford-IIIT pets (Parkhi et al. 2012): 3,680 train and 3,669 test images."""
    from torchvision.datasets import OxfordIIITPet

    base, folders = "oxford-iiit-pet", ("images", "annotations")
    listed = [
        Archive(url.rpartition("/")[2], md5, url, base, unpacked)
        for (url, md5), unpacked in zip(OxfordIIITPet._RESOURCES, folders, strict=True)
    ]
    archives = Archives("pets37", tuple(listed), place)
    splits, classes = list[Split](), tuple[str, ...]()
    for split, theirs in (("train", "trainval"), ("test", "test")):
        part = archives.read(partial(OxfordIIITPet, split=theirs))
        splits.append(_file_split(split, part._images, part._labels))
        classes = tuple(part.classes)
    return Dataset(tuple(splits), classes)


def _array_split(name: str, pixels: Any, labels: Sequence[int] | None, part: str = "") -> Split:
    """Return a split of arrays uint8 [N,H,W] or [N,H,W,3]; keys are places in their order."""
    if labels is not None and len(labels) != len(pixels):
        raise DataError(
            f"split {name} has {len(pixels)} images and {len(labels)} labels: a file of another "
            "set lies among the official ones, or one is damaged; get them anew"
        )

    def samples() -> Pairs:
        for i, image in enumerate(pixels):
            label = {} if labels is None else {"cls": b"%d" % labels[i]}
            yield f"{i:06d}", {"png": png(image), **label}

    return Split(name, samples, len(pixels), part)


def _file_split(name: str, files: Sequence[Path], labels: Sequence[int]) -> Split:
    """Return a split of image files, their bytes unchanged; keys are their names."""

    def samples() -> Pairs:
        for file, label in zip(files, labels, strict=True):
            try:
                content = file.read_bytes()
            except FileNotFoundError:
                raise DataError(
                    f"{file} is missing: the archive was unpacked in part; remove the folder, or "
                    "give the archive itself with --from"
                ) from None
            yield file.stem, {"jpg": content, "cls": b"%d" % label}

    return Split(name, samples, len(files))
