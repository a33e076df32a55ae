"""WebDataset folders as CLIP-benchmark has them: shards by split, class names, templates."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import yaml

from pipeline.datasets.archives import listed
from pipeline.datasets.sets import Dataset, Pairs, Place, Split
from pipeline.datasets.tars import keys_at
from pipeline.errors import DataError
from pipeline.shards import IMAGE_EXTENSIONS

_NAMES, _TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"


def benchmark_folder(place: Place) -> Dataset:
    """Return a folder of CLIP-benchmark: train/0.tar, test/0.tar, nshards.txt, classnames.txt.

    Beside the shards go `classes.txt`, and `prompts.yaml` with the folder's own templates as the
    set `clip`. A sample without an image is left out and counted. Raises DataError for a shard that
    nshards.txt counts and is not there.
    """
    if place.source is None or not place.source.is_dir():
        raise DataError(
            f"name the folder with {_NAMES}, train/ and test/ by --from, as CLIP-benchmark has it"
        )
    source = place.source
    if not (source / _NAMES).exists():
        raise DataError(f"{source} lacks {_NAMES}; it holds {listed(source)}")
    classes = _lines(source / _NAMES)
    left_out = {"no image": 0}
    splits = [
        Split(split, partial(_samples, _shards(source / split), left_out))
        for split in ("train", "val", "test")
        if (source / split).is_dir()
    ]
    if not splits:
        raise DataError(f"{source} has no folder train/, val/ or test/; it holds {listed(source)}")
    prompts = _prompt_file(source, classes)
    return Dataset(tuple(splits), tuple(classes), {"prompts.yaml": prompts}, left_out)


def _lines(path: Path) -> list[str]:
    """Return the lines of a list, but for empty ones."""
    text = path.read_text(encoding="utf-8-sig")
    return [line.strip() for line in text.split("\n") if line.strip()]


def _shards(folder: Path) -> list[Path]:
    """Return 0.tar, 1.tar, ... by number; raises DataError for one that is missing."""
    counted = folder / "nshards.txt"
    count = int(_lines(counted)[0]) if counted.exists() else len(list(folder.glob("*.tar")))
    shards = [folder / f"{number}.tar" for number in range(count)]
    if missing := [path.name for path in shards if not path.exists()]:
        raise DataError(
            f"{folder} should hold {count} shards and lacks {', '.join(missing[:5])}; it holds "
            f"{listed(folder)}"
        )
    return shards


def _samples(shards: Sequence[Path], left_out: dict[str, int]) -> Pairs:
    for number, shard in enumerate(shards):
        for key, members in keys_at(shard):
            image = next((name for name in IMAGE_EXTENSIONS if name in members), None)
            if image is None:
                left_out["no image"] += 1
                continue
            names = (name for name in (image, "cls", "txt") if name in members)
            yield f"{number}/{key}", {name: members[name] for name in names}


def _prompt_file(source: Path, classes: Sequence[str]) -> bytes:
    """Write a prompt file of the folder's class names and templates."""
    sets = {"plain": ["A photo of a {label}."]}
    if (source / _TEMPLATES).exists():
        sets["clip"] = [line.replace("{c}", "{label}") for line in _lines(source / _TEMPLATES)]
    content = {
        "dataset": source.resolve().name,
        "source": f"{_NAMES} and {_TEMPLATES} of a folder of CLIP-benchmark.",
        "classes": [{"name": name} for name in classes],
        "prompt_sets": sets,
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()
