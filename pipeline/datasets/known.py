"""The datasets that have a name: one entry makes a command `beamclip data NAME`."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.datasets import captions, imagenet, vision
from pipeline.datasets.benchmark import benchmark_folder
from pipeline.datasets.digits import digits
from pipeline.datasets.facts import facts_of
from pipeline.datasets.paired import prompts_for, with_captions
from pipeline.datasets.publish import Written, check_free, write_dataset
from pipeline.datasets.sets import Dataset, Place
from pipeline.errors import DataError


@dataclass(frozen=True)
class Known:
    """One dataset: how it is opened, and what its command says of it.

    open: (place, **options) -> Dataset. options: those of its own, by name, with their help; a flag
    if it is a bool. per_shard: samples in one shard, by default.
    """

    open: Callable[..., Dataset]
    about: str
    per_shard: int = 1000
    options: Mapping[str, tuple[Any, str]] | None = None


DATASETS: Mapping[str, Known] = {
    "digits": Known(
        lambda place: digits(),
        "scikit-learn's bundled digits: 1,257 train and 540 test images, no download.",
        per_shard=300,
    ),
    "cifar10": Known(vision.cifar10, "CIFAR-10: 50,000 train and 10,000 test images of 32 px."),
    "cifar100": Known(vision.cifar100, "CIFAR-100: 50,000 train and 10,000 test images of 32 px."),
    "stl10": Known(
        vision.stl10,
        "STL-10: 5,000 train, 100,000 unlabelled and 8,000 test images of 96 px.",
        options={"unlabelled": (True, "Write the 100,000 images without labels too.")},
    ),
    "flowers102": Known(
        vision.flowers102, "Oxford 102 Flowers: 1,020 train, 1,020 val and 6,149 test images."
    ),
    "pets37": Known(vision.pets37, "Oxford-IIIT Pets: 3,680 train and 3,669 test images."),
    "fashion-mnist": Known(
        vision.fashion_mnist, "Fashion-MNIST: 60,000 train and 10,000 test grey images of 28 px."
    ),
    "imagenet-1k": Known(
        imagenet.imagenet1k, "ImageNet-1K: 1,281,167 train images; 50,000 of validation as test."
    ),
    "imagenet-21k": Known(
        imagenet.imagenet21k,
        "ImageNet-21K, fall 2011 or winter 2021, all of it train; no image twice.",
        options={
            "exclude_synsets": (None, "imagenet-1k, or a file of ids, one a line."),
            "exclude_images": (None, "Shards whose images are left out, by their bytes."),
        },
    ),
    "cc3m": Known(captions.img2dataset, "Conceptual Captions 3M, as img2dataset wrote it."),
    "cc12m": Known(captions.img2dataset, "Conceptual Captions 12M, as img2dataset wrote it."),
    "coco": Known(
        partial(captions.karpathy, name="dataset_coco"),
        "COCO captions by Karpathy's splits: 113,287 train, 5,000 val and 5,000 test images.",
    ),
    "flickr30k": Known(
        partial(captions.karpathy, name="dataset_flickr30k"),
        "Flickr30k captions by Karpathy's splits: 29,000 train, 1,014 val and 1,000 test images.",
    ),
    "clip-benchmark": Known(
        benchmark_folder, "Any WebDataset folder as CLIP-benchmark has them, with its prompts."
    ),
}


def write_known(
    name: str,
    out: Path,
    *,
    source: Path | None = None,
    per_shard: int | None = None,
    max_px: int | None = None,
    val: float = 0.0,
    captions: int = 0,
    caption_seed: int = 0,
    **options: Any,
) -> Written:
    """Write the dataset of that name; see `write_dataset`. Raises DataError.

    source: the folder with its official files; without it they are downloaded where that can be
    done. captions: how many are written for each sample of a labelled dataset, drawn by
    `caption_seed`. options: those of the dataset's own.
    """
    known = DATASETS[name]
    check_free(out)
    if captions:
        prompts_for(name)  # refused before anything is downloaded
    if source is None:
        _check_downloads(name)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=out.parent, prefix=f".{out.name}.", suffix=".tmp"
    ) as scratch:  # beside the shards, where there is room for what has to be unpacked
        dataset = known.open(Place(source, Path(scratch)), **options)
        if captions:
            dataset = with_captions(dataset, name, captions, caption_seed)
        return write_dataset(
            dataset, out, per_shard=per_shard or known.per_shard, max_px=max_px, val=val
        )


def _check_downloads(name: str) -> None:
    """Raise DataError, with where the files come from, for a dataset that has to be brought."""
    facts = facts_of(name)
    if facts is not None and not facts.download:
        raise DataError(
            f"name the folder with {', '.join(facts.files)} by --from (none was given): {name} "
            f"cannot be downloaded from here; it comes from {facts.source}"
        )
