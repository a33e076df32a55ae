"""Fills templates: what is known of a class, put into one sentence."""

import html
import string
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pipeline.errors import DataError
from pipeline.options import nearest

FIELDS = ("label", "synonym", "coarse", "description", "article")
_NAMES = {"label", "synonym"}  # the fields that tell one class from another
_MARKS = ("<start_of_text>", "<end_of_text>", "<|startoftext|>", "<|endoftext|>")


@dataclass(frozen=True)
class Filled:
    """A template filled for one class; `label_end` is where the class's name ends in the text."""

    text: str
    label_end: int


def as_read(text: str) -> str:
    """Return what a tokenizer makes of a text: one form of each letter, case and space."""
    plain = html.unescape(html.unescape(text))  # twice, as CLIP's tokenizer does
    return " ".join(unicodedata.normalize("NFC", plain).casefold().split())


def check_marks(text: str, where: str) -> None:
    """Refuse a text that would end early because it holds one of the tokenizer's own marks."""
    if found := [mark for mark in _MARKS if mark in as_read(text)]:
        raise DataError(f"{where} holds the tokenizer's own {found[0]}")


def fields_of(template: str) -> list[str]:
    """Return the fields of a template in their order; raises DataError for one that is none."""
    fields = [field for _, field in _parts(template) if field is not None]
    if not _NAMES.intersection(fields):
        raise DataError(f"template {template!r} has no {{label}}: every class would read the same")
    check_marks(template, f"template {template!r}")
    return fields


def fill(template: str, values: Mapping[str, str | None]) -> Filled:
    """Fill a template for one class; raises DataError for a field that the class lacks.

    values: by field. An article of None is a or an, as the word after it asks; one of "" is left
    out with its space. A full stop that ends a description gives way to the template's own.
    """
    text, after_label = "", 0
    for literal, field in reversed(_parts(template)):
        if field == "article":
            text = _with_article(values["article"], text)
        elif field is not None:
            if field in _NAMES:
                after_label = len(text)
            text = _value(template, field, values, text) + text
        text = literal + text
    return Filled(text, len(text) - after_label)


def _value(template: str, field: str, values: Mapping[str, str | None], after: str) -> str:
    value = values[field] or ""
    if not value.strip():
        raise DataError(f"template {template!r} needs {field!r}, which {values['label']!r} lacks")
    return value.rstrip().rstrip(".") if field == "description" and after[:1] == "." else value


def _with_article(article: str | None, after: str) -> str:
    """Put an article before the word that begins `after`."""
    word = after.lstrip().partition(" ")[0]
    if article is None and word:
        article = _a_or_an(word)
    return f"{article}{after}" if article else after.lstrip()


@cache
def _a_or_an(word: str) -> str:
    return str(_engine().a(word)).partition(" ")[0]


@cache
def _engine() -> Any:
    import inflect  # takes a while, as does making its engine

    return inflect.engine()


def _parts(template: str) -> list[tuple[str, str | None]]:
    """Return (literal, field after it or None) of a template; raises DataError."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise DataError(f"template {template!r}: {error}") from None
    for _, field, spec, conversion in parts:
        if field is not None and field not in FIELDS:
            hint = nearest(field, FIELDS)
            raise DataError(f"template {template!r}: unknown field {field!r}; {hint}")
        if spec or conversion:
            raise DataError(f"template {template!r}: fields are plain, as in {{{field}}}")
    return [(literal, field) for literal, field, _, _ in parts]
