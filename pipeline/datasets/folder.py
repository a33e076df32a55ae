"""Any folder of images: sub-folders are classes, folders named like splits are splits."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from pipeline.datasets.publish import key_hash
from pipeline.datasets.sets import Dataset, Pairs, Split
from pipeline.errors import DataError
from pipeline.patterns import SPLITS
from pipeline.shards import IMAGE_EXTENSIONS

_log = logging.getLogger(__name__)


def image_folder(source: Path, *, holdout: float = 0.0) -> Dataset:
    """Return a folder of images, their bytes unchanged, in the order of their paths.

    Folders named train, val or test in `source` are splits, and then hold every image; otherwise
    everything is train, but for the share `holdout` that goes to test, chosen by a hash of the
    path. Where every image lies in a sub-folder, these are classes: each sample gets `.cls`, and
    `classes.txt` names them in order. Names that begin with a dot are passed over. Each sample's
    `.json` holds its path. Raises DataError if a split has nothing to write.
    """
    if not source.is_dir():
        raise DataError(f"{source} is no folder; expected a folder of images")
    if not 0 <= holdout < 1:
        raise DataError(f"--holdout is a share of the images, 0 to below 1, not {holdout}")
    files = _files_by_split(source, holdout)
    classes = _classes(files)
    return Dataset(
        tuple(
            Split(split, partial(_samples, pairs, classes), len(pairs))
            for split, pairs in files.items()
        ),
        classes=tuple(classes),
    )


def _files_by_split(source: Path, holdout: float) -> dict[str, list[tuple[Path, str]]]:
    """Return split -> [(file, path within the split's folder)], in the order of the paths."""
    named = [split for split in SPLITS if (source / split).is_dir()]
    if named and holdout:
        raise DataError(f"{source} has its own splits ({', '.join(named)}): --holdout has no place")
    images = _images_below(source)
    found: dict[str, list[tuple[Path, str]]] = {split: [] for split in named} or {"train": images}
    for file, path in images if named else []:
        split, _, rest = path.partition("/")
        if split not in found:
            raise DataError(
                f"{source} has split folders ({', '.join(named)}) and {path!r} beside them: move "
                "it into one, or every class into train"
            )
        found[split].append((file, rest))
    for split, files in found.items():
        if not files:
            root = source / split if named else source
            raise DataError(f"{root} holds no images (looked for {', '.join(IMAGE_EXTENSIONS)})")
    return _held_out(found["train"], holdout) if holdout else found


def _held_out(images: list[tuple[Path, str]], holdout: float) -> dict[str, list[tuple[Path, str]]]:
    cut = int(holdout * 2**64)
    found = {
        "train": [pair for pair in images if key_hash(pair[1]) >= cut],
        "test": [pair for pair in images if key_hash(pair[1]) < cut],
    }
    if empty := [split for split, pairs in found.items() if not pairs]:
        raise DataError(f"--holdout {holdout} of {len(images)} images leaves {empty[0]} empty")
    return found


def _images_below(root: Path) -> list[tuple[Path, str]]:
    """Return (file, path within `root`) of every image, in the order of the paths."""
    files = list(_files_below(root))
    images = [path for path in files if path.suffix[1:].lower() in IMAGE_EXTENSIONS]
    if len(images) < len(files):
        _log.warning("%s: left out %d files that are no images", root, len(files) - len(images))
    return sorted((path, path.relative_to(root).as_posix()) for path in images)


def _files_below(root: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield every file but hidden ones; links to folders are followed, but not in a circle."""
    real = os.path.realpath(root)
    if real in above:
        return
    for path in root.iterdir():
        if path.name.startswith("."):  # thumbnails and notes that file managers leave behind
            continue
        if path.is_dir():
            yield from _files_below(path, (*above, real))
        else:
            yield path


def _classes(files: Mapping[str, list[tuple[Path, str]]]) -> list[str]:
    """Return the first-level folder names in order, or none if any image lies outside one."""
    paths = [path for pairs in files.values() for _, path in pairs]
    loose = [path for path in paths if "/" not in path]
    if loose and len(loose) < len(paths):
        _log.warning(
            "%d of %d images lie in no sub-folder (%s, ...): no image gets a label",
            *(len(loose), len(paths), loose[0]),
        )
    if loose:
        return []
    classes = sorted({path.split("/", 1)[0] for path in paths})
    if broken := [name for name in classes if "\n" in name]:
        raise DataError(f"class folder {broken[0]!r} has a line break in its name: rename it")
    return classes


def _samples(pairs: list[tuple[Path, str]], classes: list[str]) -> Pairs:
    numbers = {name: number for number, name in enumerate(classes)}
    for ordinal, (file, path) in enumerate(pairs):
        members = {file.suffix[1:].lower(): file.read_bytes()}
        members["json"] = json.dumps({"path": path}).encode()
        if classes:
            members["cls"] = str(numbers[path.split("/", 1)[0]]).encode()
        yield f"{ordinal:09d}", members
