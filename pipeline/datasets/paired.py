"""Writes captions for a labelled dataset, so that its images are pairs with texts."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b

from pipeline.captions import object_in
from pipeline.datasets.facts import FACTS_FOLDER, facts_of
from pipeline.datasets.sets import Dataset, Pairs, Split
from pipeline.errors import DataError
from pipeline.options import options, parse
from pipeline.prompt_file import ClassPrompt, load_prompts
from pipeline.templates import as_read, fill
from pipeline.yamlfile import read_yaml

_FOLDER = FACTS_FOLDER / "captions"
_ANY = "photos"  # the templates of a dataset that has none of its own


@options
class CaptionTemplates:
    """One file of data/datasets/captions: sentences with the fields of a prompt file's classes."""

    templates: tuple[str, ...]


def prompts_for(name: str) -> str:
    """Return the prompt file that captions of a dataset are written from.

    Raises DataError for a dataset without labels, or without such a file.
    """
    facts = facts_of(name)
    if facts is not None and facts.classes is None:
        raise DataError(
            f"--captions writes captions from labels: {name} has none, and captions of its own; "
            "leave --captions out"
        )
    if facts is None or facts.prompts is None:
        raise DataError(
            f"--captions writes captions from a prompt file's names and context: there is none for "
            f"{name}; leave --captions out"
        )
    return facts.prompts


def with_captions(dataset: Dataset, name: str, count: int, seed: int = 0) -> Dataset:
    """Return the dataset with `count` captions in each sample's `.json`, the first in `.txt`.

    They tell the class, not the single image. Which ones is a function of the sample's key, its
    label and the seed alone; no two of one sample are the same. Raises DataError if some class has
    fewer captions than that, and, when it comes to be read, for a sample without a label.
    """
    texts = class_captions(name)
    for label, found in enumerate(texts):
        if len(found) < count:
            raise DataError(
                f"--captions {count}: label {label} of {name} has {len(found)} captions to choose "
                "from; ask for no more"
            )
    splits = tuple(
        replace(split, samples=partial(_captioned, split, texts, count, seed))
        for split in dataset.splits
    )
    return replace(dataset, splits=splits)


def class_captions(name: str) -> list[tuple[str, ...]]:
    """Return the captions of each label, in the order of the templates; raises DataError.

    A template with a field that a class lacks is passed over; one with {synonym} makes a caption
    for each. No caption is of two classes.
    """
    classes = load_prompts(prompts_for(name)).classes
    file = _FOLDER / f"{name}.yaml"
    path = file if file.exists() else _FOLDER / f"{_ANY}.yaml"
    where = f"caption templates {path}"
    templates = parse(CaptionTemplates, read_yaml(path, where=where), where=where).templates
    texts = [tuple(dict.fromkeys(_filled(templates, item))) for item in classes]
    _check_apart(classes, texts)
    return texts


def _filled(templates: Sequence[str], item: ClassPrompt) -> Iterator[str]:
    known = {"label": item.name, "coarse": item.coarse, "description": item.description}
    for template in templates:
        for synonym in item.synonyms if "{synonym}" in template else ("",):
            values = {**known, "synonym": synonym, "article": item.article}
            lacking = [key for key, value in values.items() if not value and key != "article"]
            if not any(f"{{{key}}}" in template for key in lacking):
                text = fill(template, values).text
                yield text[:1].upper() + text[1:]


def _check_apart(classes: Sequence[ClassPrompt], texts: Sequence[Sequence[str]]) -> None:
    seen: dict[str, str] = {}
    for item, found in zip(classes, texts, strict=True):
        for text in found:
            other = seen.setdefault(as_read(text), item.name)
            if other != item.name:
                raise DataError(
                    f"classes {other!r} and {item.name!r} have the same caption {text!r}: no image "
                    "could be told apart by it"
                )


def _captioned(split: Split, texts: Sequence[Sequence[str]], count: int, seed: int) -> Pairs:
    for key, members in split.samples():
        if "cls" not in members:
            raise DataError(
                f"sample {key} of {split.prefix} has no label to write captions from: leave "
                "--captions out, or the samples without labels (stl10: --no-unlabelled)"
            )
        chosen = drawn(key, texts[int(members["cls"])], count, seed)
        known = object_in(members["json"]) if "json" in members else {}
        content = json.dumps({"captions": chosen, **known}, ensure_ascii=False)
        yield key, {**members, "txt": chosen[0].encode(), "json": content.encode()}


def drawn(key: str, texts: Sequence[str], count: int, seed: int) -> list[str]:
    """Return `count` of the texts, which and in what order as a hash of key and seed says.

    Of two counts, the smaller draw begins the larger.
    """

    def lot(place: int) -> bytes:
        name = f"{seed} {place} {key}".encode("utf-8", "surrogateescape")
        return blake2b(name, digest_size=16).digest()

    return [texts[place] for place in sorted(range(len(texts)), key=lot)[:count]]
