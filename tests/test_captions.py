"""Captions of a sample: what its texts hold, and what cannot be taken."""

import json

import pytest

from pipeline.captions import captions_of
from pipeline.shards import Member


def members(**contents: bytes | None) -> dict[str, Member]:
    """Return members by extension; None is one that was too large to be held."""
    return {name: Member(0, len(content or b""), content) for name, content in contents.items()}


def said(**fields: object) -> bytes:
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    ("contents", "texts"),
    [
        ({"jpg": b""}, ()),
        ({"txt": " a café \n".encode()}, ("a café",)),
        ({"txt": b"\xef\xbb\xbfa dog"}, ("a dog",)),
        ({"json": said(caption="a dog")}, ("a dog",)),
        ({"json": said(captions=["a dog", " two\ndogs "])}, ("a dog", "two\ndogs")),
        ({"json": said(captions=["a", "a"], caption="b"), "txt": b"c"}, ("a", "a")),
        ({"json": said(captions=[]), "txt": b"a dog"}, ("a dog",)),
        ({"json": said(caption=None, url="x"), "txt": b"a dog"}, ("a dog",)),
        ({"json": said(url="\ud800"), "txt": b"a dog"}, ("a dog",)),
    ],
)
def test_captions_are_those_of_the_json_or_else_of_the_txt(
    contents: dict[str, bytes], texts: tuple[str, ...]
) -> None:
    found = captions_of(members(**contents))
    assert (found.texts, found.left_out) == (texts, ())


@pytest.mark.parametrize(
    ("contents", "texts", "left_out"),
    [
        ({"txt": b" "}, (), ("empty",)),
        ({"txt": b"caf\xe9"}, (), ("bad-txt",)),
        ({"txt": None}, (), ("too-many-bytes",)),
        ({"json": None, "txt": b"a dog"}, ("a dog",), ("too-many-bytes",)),
        ({"json": b"{", "txt": b"a dog"}, ("a dog",), ("bad-json",)),
        ({"json": b"[" * 100_000, "txt": b"\xff"}, (), ("bad-json", "bad-txt")),
        ({"json": b"9" * 5000}, (), ("bad-json",)),
        ({"json": said(captions="a dog")}, (), ("no-text",)),
        ({"json": said(caption=["a dog"])}, (), ("no-text",)),
        ({"json": said(captions=["a", "", 5, "b\ud800"])}, ("a",), ("empty", "no-text", "no-text")),
        ({"txt": b"a <End_of_text> dog"}, (), ("tokenizer-mark",)),
    ],
)
def test_what_cannot_be_taken_costs_the_rest_nothing(
    contents: dict[str, bytes | None], texts: tuple[str, ...], left_out: tuple[str, ...]
) -> None:
    found = captions_of(members(**contents))
    assert (found.texts, found.left_out) == (texts, left_out)
