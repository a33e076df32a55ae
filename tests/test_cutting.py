"""Long texts are cut where a reader would cut them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cutting import fitting


def words(text: str) -> int:
    """Count the words of a text, as a tokenizer that knows them all would, and two marks."""
    return len(text.split()) + 2


def cut(text: str, most: int, label: str = "crane") -> str | None:
    kept = fitting(text, text.index(label) + len(label), words, most)
    return None if kept is None else text[:kept]


def test_what_fits_is_left_whole() -> None:
    text = "A photo of a crane. A bird."
    assert cut(text, words(text)) == text


@pytest.mark.parametrize(
    ("most", "kept"),
    [
        (13, "A photo of a crane. It is a bird. It wades."),
        (12, "A photo of a crane. It is a bird."),
        (9, "A photo of a crane."),
        (7, "A photo of a crane."),
        (6, None),  # "A photo of a crane" alone has 7
    ],
)
def test_whole_sentences_are_kept_as_many_as_fit(most: int, kept: str | None) -> None:
    assert cut("A photo of a crane. It is a bird. It wades. And it flies far away.", most) == kept


def test_a_full_stop_inside_the_name_or_a_number_ends_no_sentence() -> None:
    assert cut("A photo of a St. Bernard dog that is large", 9, "St. Bernard") == (
        "A photo of a St. Bernard dog"
    )
    assert cut("A crane 2.5 m tall. One two three four.", 8) == "A crane 2.5 m tall."


@pytest.mark.parametrize("end", [".", "!", "?", "...", "\u2026", '."', "!)", ".\u201d"])
def test_sentences_end_in_many_ways(end: str) -> None:
    assert cut(f"A crane{end} one two three", 5) == f"A crane{end}"
    assert cut(f"A crane, a bird{end} one two three", 7) == f"A crane, a bird{end}"


def test_without_a_sentence_that_fits_words_are_kept_whole() -> None:
    assert cut("A crane with long legs and a long neck", 7) == "A crane with long legs"


def test_a_script_without_spaces_is_cut_between_letters() -> None:
    text = "crane" + "\u9e64" * 100
    kept = fitting(text, 5, len, 40)
    assert kept == 40


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab .!\n", max_size=60), st.text(alphabet="ab .!\n", max_size=200))
def test_a_cut_fits_holds_the_label_and_is_told_apart_from_no_cut(before: str, after: str) -> None:
    text, label_end, most = f"{before}name{after}", len(before) + 4, 12
    kept = fitting(text, label_end, words, most)
    if kept is None:
        assert words(text[:label_end]) > most
    else:
        assert label_end <= kept <= len(text)
        assert words(text[:kept]) <= most
        assert (kept == len(text)) == (words(text) <= most)
