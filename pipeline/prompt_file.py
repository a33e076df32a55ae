"""Reads prompt files: classes in a dataset's order, what is known of them, templates by set."""

import json
import logging
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pipeline import storage
from pipeline.errors import DataError, RecipeError
from pipeline.library_prompts import written_out
from pipeline.options import nearest, options, parse
from pipeline.shards import Shard
from pipeline.templates import as_read, check_marks, fields_of
from pipeline.yamlfile import read_yaml

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")  # part of a folder's name in a cache
_BUNDLED = Path(__file__).parent / "bundled" / "prompts"  # in an installed wheel
_ROOT = _BUNDLED if _BUNDLED.is_dir() else Path(__file__).parents[1] / "prompts"  # or in a clone
_log = logging.getLogger(__name__)


@options
class ClassPrompt:
    """One class: its name, and the context that tells it from its namesakes.

    article: what stands before the name, "" for names that take none; by default a or an.
    """

    name: str
    coarse: str | None = None
    description: str | None = None
    synonyms: tuple[str, ...] = ()
    article: str | None = None


@options
class TemplateSet:
    """A set's templates, and whether a class's texts make one averaged anchor or one each."""

    templates: tuple[str, ...]
    anchors: Literal["averaged", "separate"] = "averaged"


@options
class PromptFile:
    """A prompt file: classes in the dataset's order, and templates by the name of their set.

    source: where names, coarse labels and descriptions come from.
    """

    dataset: str
    source: str = ""
    classes: tuple[ClassPrompt, ...]
    prompt_sets: dict[str, TemplateSet]


def load_prompts(file: str, descriptions: str | None = None) -> PromptFile:
    """Read and check a prompt file by name ("digits") or path; raises DataError, and of that
    LibraryError if its names are to be read from a library that is not installed.

    descriptions: a YAML or JSON file, {class name: description}, that takes the place of the file's
    own; the sets that use them get its name, as in `cpa.wikipedia`.
    """
    path = _find(file)
    where = f"prompt file {path}"
    try:
        prompts = parse(PromptFile, written_out(read_yaml(path, where=where)), where=where)
    except RecipeError as error:
        raise DataError(str(error)) from None
    _check(path, prompts)
    return _described(prompts, Path(descriptions)) if descriptions else prompts


def check_class_order(prompts: PromptFile, shards: Sequence[Shard]) -> None:
    """Hold the classes against the `classes.txt` beside the shards, if there is one.

    Labels count its lines. Raises DataError if the prompts have the same names in another order;
    other names may mean the same, and are warned of.
    """
    for path in dict.fromkeys(storage.beside(shard.location, "classes.txt") for shard in shards):
        listed = storage.read_if_there(path)
        if listed is None:
            continue
        labels = [_folded(name) for name in listed.decode(errors="replace").splitlines()]
        names = [_folded(item.name) for item in prompts.classes]
        place = next((i for i, pair in enumerate(zip(labels, names)) if pair[0] != pair[1]), None)  # noqa: B905
        if place is None:
            continue
        difference = f"label {place} is {labels[place]!r} there, {names[place]!r} in the prompts"
        if sorted(labels) == sorted(names):
            raise DataError(
                f"prompts for {prompts.dataset} and {path} have the same classes in another order "
                f"({difference}): give the prompt file's classes in the order of {path}"
            )
        _log.warning("%s: %s; check that they mean the same", path, difference)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().replace("_", " ").strip()


def _find(file: str) -> Path:
    if file.endswith((".yaml", ".yml")):
        return Path(file)
    known = {path.stem: path for path in _ROOT.glob("*.yaml")}
    if file not in known:
        raise DataError(
            f"no prompt file {file!r}: {nearest(file, known)}; or give the path of a .yaml file"
        )
    return known[file]


def _check(path: Path, prompts: PromptFile) -> None:
    if not prompts.prompt_sets:
        raise DataError(f"{path}: there is no prompt set")
    for name in (prompts.dataset, *prompts.prompt_sets):
        if not _NAME.fullmatch(name):
            raise DataError(f"{path}: {name!r} may hold letters, digits and _ . + - only")
    _check_classes(path, prompts.classes)


def _check_classes(path: Path, classes: Sequence[ClassPrompt]) -> None:
    if not classes:
        raise DataError(f"{path}: the list of classes is empty")
    seen: dict[str, str] = {}
    for item in classes:
        read = as_read(item.name)
        if not read:
            raise DataError(f"{path}: a class has an empty name")
        if read in seen:
            raise DataError(
                f"{path}: classes {seen[read]!r} and {item.name!r} read the same to a teacher, "
                "so no image could be told apart by them: give each its own name"
            )
        for text in (item.name, item.coarse, item.description, *item.synonyms):
            check_marks(text or "", f"{path}: class {item.name!r}")
        seen[read] = item.name


def _described(prompts: PromptFile, path: Path) -> PromptFile:
    """Put other descriptions in the place of a file's own; raises DataError."""
    texts = _read_descriptions(path)
    names = [item.name for item in prompts.classes]
    if unknown := [name for name in texts if name not in names]:
        raise DataError(f"{path}: no class is called {unknown[0]!r}; {nearest(unknown[0], names)}")
    if lacking := [name for name in names if name not in texts]:
        raise DataError(
            f"{path} describes {len(texts)} of {len(names)} classes of {prompts.dataset}; it lacks "
            f"{', '.join(map(repr, lacking[:5]))}{', ...' if len(lacking) > 5 else ''}"
        )
    for name, text in texts.items():
        check_marks(text, f"{path}: class {name!r}")
    if not _NAME.fullmatch(path.stem):
        raise DataError(f"{path}: its name names a prompt set: letters, digits and _ . + - only")
    return replace(
        prompts,
        classes=tuple(replace(item, description=texts[item.name]) for item in prompts.classes),
        prompt_sets={
            f"{name}.{path.stem}" if _uses_descriptions(chosen) else name: chosen
            for name, chosen in prompts.prompt_sets.items()
        },
    )


def _read_descriptions(path: Path) -> dict[str, str]:
    where = f"descriptions {path}"
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
        else:
            content = read_yaml(path, where=where)
        return dict(parse(dict[str, str], content, where=where))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {where}: {error}") from None
    except RecipeError as error:
        raise DataError(str(error)) from None


def _uses_descriptions(chosen: TemplateSet) -> bool:
    return any("description" in fields_of(template) for template in chosen.templates)
