"""Turns prompt files into prompt sets: the texts that stand for each class."""

import html
import logging
import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import storage
from pipeline.errors import DataError, RecipeError
from pipeline.options import nearest, options, parse
from pipeline.shards import Shard
from pipeline.yamlfile import read_yaml

_SPECIAL = ("<start_of_text>", "<end_of_text>", "<|startoftext|>", "<|endoftext|>")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")  # part of a folder's name in a cache
_BUNDLED = Path(__file__).parent / "bundled" / "prompts"  # in an installed wheel
_ROOT = _BUNDLED if _BUNDLED.is_dir() else Path(__file__).parents[1] / "prompts"  # or in a clone
_log = logging.getLogger(__name__)


@options
class PromptOptions:
    """Which prompt file a cache is made with, and which of its sets serves for what."""

    file: str  # a name under prompts/, or a path to a YAML file
    anchors: str  # the set whose embeddings are the anchors of training
    zeroshot: str  # the set whose embeddings classify in the zero-shot probe


@options
class ClassPrompt:
    """One class: its name, and the context that tells it from its namesakes."""

    name: str
    coarse: str | None = None
    description: str | None = None


@options
class PromptFile:
    """A prompt file: classes in the dataset's order, and templates by the name of their set."""

    dataset: str
    classes: tuple[ClassPrompt, ...]
    prompt_sets: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class PromptSet:
    """Class texts after templates and context: texts[class][template]."""

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]


def load_prompts(file: str) -> PromptFile:
    """Read and check a prompt file by name ("digits") or path; raises DataError."""
    path = _find(file)
    where = f"prompt file {path}"
    try:
        prompts = parse(PromptFile, read_yaml(path, where=where), where=where)
    except RecipeError as error:
        raise DataError(str(error)) from None
    if not prompts.prompt_sets:
        raise DataError(f"{path}: there is no prompt set")
    for name in (prompts.dataset, *prompts.prompt_sets):
        if not _NAME.fullmatch(name):
            raise DataError(f"{path}: {name!r} may hold letters, digits and _ . + - only")
    _check_classes(path, prompts.classes)
    return prompts


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


def prompt_set(prompts: PromptFile, name: str) -> PromptSet:
    """Fill in the templates of one set; raises DataError for a field that a class lacks."""
    if name not in prompts.prompt_sets:
        hint = nearest(name, prompts.prompt_sets)
        raise DataError(f"prompts for {prompts.dataset} have no set {name!r}: {hint}")
    templates = prompts.prompt_sets[name]
    if not templates:
        raise DataError(f"prompt set {name!r} of {prompts.dataset} has no template")
    for template in templates:
        _check_template(template)
    texts = tuple(
        tuple(_fill(template, item) for template in templates) for item in prompts.classes
    )
    _check_texts(prompts, templates, texts)
    return PromptSet(
        name=f"{prompts.dataset}-{name}",
        class_names=tuple(item.name for item in prompts.classes),
        templates=templates,
        texts=texts,
    )


def _find(file: str) -> Path:
    if file.endswith((".yaml", ".yml")):
        return Path(file)
    known = {path.stem: path for path in _ROOT.glob("*.yaml")}
    if file not in known:
        raise DataError(
            f"no prompt file {file!r}: {nearest(file, known)}; or give the path of a .yaml file"
        )
    return known[file]


def _check_classes(path: Path, classes: Sequence[ClassPrompt]) -> None:
    if not classes:
        raise DataError(f"{path}: the list of classes is empty")
    seen: dict[str, str] = {}
    for item in classes:
        read = _as_read(item.name)
        if not read:
            raise DataError(f"{path}: a class has an empty name")
        if read in seen:
            raise DataError(
                f"{path}: classes {seen[read]!r} and {item.name!r} read the same to a teacher, "
                "so no image could be told apart by them: give each its own name"
            )
        for text in (item.name, item.coarse, item.description):
            _check_marks(text or "", f"{path}: class {item.name!r}")
        seen[read] = item.name


def _as_read(text: str) -> str:
    """Return what a tokenizer makes of a text: one form of each letter, case and space."""
    plain = html.unescape(html.unescape(text))  # twice, as CLIP's tokenizer does
    return " ".join(unicodedata.normalize("NFC", plain).casefold().split())


def _check_marks(text: str, where: str) -> None:
    """Refuse a text that would end early because it holds one of the tokenizer's own marks."""
    if found := [mark for mark in _SPECIAL if mark in _as_read(text)]:
        raise DataError(f"{where} holds the tokenizer's own {found[0]}")


def _check_template(template: str) -> None:
    try:
        parts = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise DataError(f"template {template!r}: {error}") from None
    valid = {"label", "coarse", "description"}
    if "label" not in [field for field, _, _ in parts]:
        raise DataError(f"template {template!r} has no {{label}}: every class would read the same")
    for field, spec, conversion in parts:
        if field not in valid:
            hint = nearest(str(field), valid)
            raise DataError(f"template {template!r}: unknown field {field!r}; {hint}")
        if spec or conversion:
            raise DataError(f"template {template!r}: fields are plain, as in {{{field}}}")
    _check_marks(template, f"template {template!r}")


def _check_texts(
    prompts: PromptFile, templates: Sequence[str], texts: Sequence[Sequence[str]]
) -> None:
    """Refuse a template in which two classes, though their names differ, get the same text."""
    for place, template in enumerate(templates):
        seen: dict[str, str] = {}
        for item, filled in zip(prompts.classes, texts, strict=True):
            other = seen.setdefault(_as_read(filled[place]), item.name)
            if other != item.name:
                raise DataError(
                    f"template {template!r} gives {other!r} and {item.name!r} the same text "
                    f"{filled[place]!r}: no image could be told apart by it"
                )


def _fill(template: str, item: ClassPrompt) -> str:
    fields = {"label": item.name, "coarse": item.coarse, "description": item.description}
    for _, field, _, _ in string.Formatter().parse(template):
        if field is not None and not (fields[field] or "").strip():
            raise DataError(f"template {template!r} needs {field!r}, which {item.name!r} lacks")
    return template.format(**fields)
