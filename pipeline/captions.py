"""Finds the captions of a sample: one in `.txt`, one or several in `.json`."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import DataError, SampleError
from pipeline.shards import Member
from pipeline.templates import check_marks

MAX_TEXT_BYTES = 1 << 20  # of a .txt or a .json


@dataclass(frozen=True)
class Found:
    """The captions of one sample, stripped; left_out: a word for each that could not be taken."""

    texts: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def captions_of(members: Mapping[str, Member]) -> Found:
    """Return the captions that a sample's members hold.

    Those of `.json` (`captions`, a list, or else `caption`); that of `.txt` where there are none.
    Left out are texts that are empty, no text, or hold a mark of the tokenizer's own, and members
    that are too large or cannot be read.
    """
    by_json = _taken(members["json"], _values) if "json" in members else Found()
    if by_json.texts or "txt" not in members:
        return by_json
    by_txt = _taken(members["txt"], lambda content: [text_in(content)])
    return Found(by_txt.texts, by_json.left_out + by_txt.left_out)


def object_in(content: bytes) -> dict[str, Any]:
    """Return the JSON object in a `.json`; raises SampleError if there is none."""
    try:
        said = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SampleError("bad-json", f"{type(error).__name__}: {error}") from None
    if not isinstance(said, dict):
        raise SampleError("bad-json", f"holds a {type(said).__name__}, not an object")
    return said


def text_in(content: bytes) -> str:
    """Return the text in a `.txt`; raises SampleError if it is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except ValueError as error:
        raise SampleError("bad-txt", str(error)) from None


def _values(content: bytes) -> list[object]:
    """Return what stands for captions in a `.json`, of whatever type."""
    said = object_in(content)
    if "captions" in said:
        several = said["captions"]
        return several if isinstance(several, list) else [None]
    return [said["caption"]] if said.get("caption") is not None else []


def _taken(member: Member, read: Callable[[bytes], Iterable[object]]) -> Found:
    """Read a member, and part what can be embedded from what cannot."""
    try:
        judged = [_judged(value) for value in read(member.content)]
    except SampleError as error:
        return Found(left_out=(error.reason,))
    texts = tuple(text for text, _ in judged if text)
    return Found(texts, tuple(reason for _, reason in judged if reason))


def _judged(value: object) -> tuple[str, str]:
    """Return a caption, or the reason why it is none."""
    if not isinstance(value, str):
        return "", "no-text"
    text = value.strip()
    try:
        text.encode()
        check_marks(text, "a caption")
    except UnicodeEncodeError:
        return "", "no-text"  # half a surrogate pair, which JSON can spell
    except DataError:
        return "", "tokenizer-mark"
    return text, "" if text else "empty"
