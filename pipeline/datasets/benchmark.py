"""WebDataset folders as CLIP-benchmark has them: shards by split, class names, templates."""

import logging
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import yaml

from pipeline.datasets.archives import listed
from pipeline.datasets.sets import Dataset, Pairs, Place, Split
from pipeline.datasets.tars import keys_at
from pipeline.errors import DataError
from pipeline.prompts import load_sets
from pipeline.shards import IMAGE_EXTENSIONS

_NAMES, _TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
_log = logging.getLogger(__name__)


def benchmark_folder(place: Place) -> Dataset:
    """Return a folder of CLIP-benchmark: train/0.tar, test/0.tar, nshards.txt, classnames.txt.

    Beside the shards go `classes.txt`, and `prompts.yaml` with the folder's own templates as the
    set `clip`; if that has to be edited before it loads, it is told how. A sample without an image
    is left out and counted. Raises DataError for a shard that nshards.txt counts and is not there,
    and for a label that has no name.
    """
    if place.source is None or not place.source.is_dir():
        raise DataError(
            f"name the folder with {_NAMES}, train/ and test/ by --from, as CLIP-benchmark has it"
        )
    source = place.source
    if not (source / _NAMES).exists():
        raise DataError(f"{source} lacks {_NAMES}; it holds {listed(source)}")
    classes = _class_names(source / _NAMES)
    found = [split for split in ("train", "val", "test") if (source / split).is_dir()]
    if not found:
        raise DataError(f"{source} has no folder train/, val/ or test/; it holds {listed(source)}")
    left_out = {_no_image(split): 0 for split in found}
    splits = [
        Split(split, partial(_samples, split, _shards(source / split), len(classes), left_out))
        for split in found
    ]
    prompts = _prompt_file(source, classes)
    _check(prompts, place.scratch)
    return Dataset(tuple(splits), tuple(classes), {"prompts.yaml": prompts}, left_out)


def _lines(path: Path) -> list[str]:
    """Return the lines of a list, but for empty ones at its end; raises DataError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text: {error}") from None
    return [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []


def _class_names(path: Path) -> list[str]:
    """Return a name for each label; an empty line would shift every label after it."""
    names = _lines(path)
    if not names:
        raise DataError(f"{path} names no class")
    if "" in names:
        raise DataError(
            f"{path}, line {names.index('') + 1} is empty, and labels count the lines: write the "
            "name of that label there, or take the line out"
        )
    return names


def _shards(folder: Path) -> list[Path]:
    """Return 0.tar, 1.tar, ... by number; raises DataError for one that is missing."""
    counted = folder / "nshards.txt"
    if counted.exists():
        found = " ".join(_lines(counted))
        if not re.fullmatch(r"[0-9]{1,7}", found):
            raise DataError(f"{counted} holds {found[:40]!r}; expected how many tars there are")
        count = int(found)
    else:
        count = len(list(folder.glob("*.tar")))
    shards = [folder / f"{number}.tar" for number in range(count)]
    if missing := [path.name for path in shards if not path.exists()]:
        raise DataError(
            f"{folder} should hold {count} shards and lacks {', '.join(missing[:5])}; it holds "
            f"{listed(folder)}"
        )
    return shards


def _no_image(split: str) -> str:
    return f"no image, {split}"


def _samples(
    split: str, shards: Sequence[Path], num_classes: int, left_out: dict[str, int]
) -> Pairs:
    left_out[_no_image(split)] = 0  # a split that gives a part to val is read twice
    for number, shard in enumerate(shards):
        for key, members in keys_at(shard):
            image = next((name for name in IMAGE_EXTENSIONS if name in members), None)
            if image is None:
                left_out[_no_image(split)] += 1
                continue
            label = members.get("cls", b"").strip()
            if label.isdigit() and int(label) >= num_classes:
                raise DataError(
                    f"{shard}: {key} has label {int(label)}, {_NAMES} names {num_classes} classes "
                    f"(0 to {num_classes - 1}): add the names that it lacks"
                )
            names = (name for name in (image, "cls", "txt") if name in members)
            yield f"{number}/{key}", {name: members[name] for name in names}


# --- prompts -------------------------------------------------------------------------------------


def _prompt_file(source: Path, classes: Sequence[str]) -> bytes:
    """Write a prompt file of the folder's class names and templates."""
    sets = {"plain": ["A photo of a {label}."]}
    if (source / _TEMPLATES).exists():
        sets["clip"] = [_template(line) for line in _lines(source / _TEMPLATES) if line]
    content = {
        "dataset": _set_name(source.resolve().name),
        "source": f"{_NAMES} and {_TEMPLATES} of a folder of CLIP-benchmark.",
        "classes": [{"name": name} for name in classes],
        "prompt_sets": sets,
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()


def _set_name(folder: str) -> str:
    """Return what names a folder of a cache, too."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", folder).strip("-_.+") or "clip-benchmark"


def _template(line: str) -> str:
    """Return a template of CLIP-benchmark, whose one field is {c}, as one of ours."""
    parts = (part.replace("{", "{{").replace("}", "}}") for part in line.split("{c}"))
    return "{label}".join(parts)


def _check(prompts: bytes, scratch: Path) -> None:
    """Load a prompt file as training would; warn if it has to be edited first."""
    file = scratch / "prompts.yaml"
    file.write_bytes(prompts)
    try:
        load_sets(str(file))
    except DataError as error:
        why = str(error).replace(f"{file}: ", "")
        _log.warning("prompts.yaml is to be edited before it can be used: %s", why)
