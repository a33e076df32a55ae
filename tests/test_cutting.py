"""Long texts are cut where a reader would cut them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cutting import fitting


def words(text: str) -> int:
    """Count the words of a text, as a tokenizer that knows them all would, and two marks."""
    return len(text.split()) + 2


def cut(text: str, most: int, label: str = "crane", *more: str) -> str | None:
    kept = fitting(text, text.index(label) + len(label), words, most, names=(label, *more))
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


@pytest.mark.parametrize(
    "abbreviated",
    [
        *("cf.", "Cf.", "e.g.", "i.e.", "e. g.", "(cf.", "c.", "ca.", "approx.", "viz.", "vs."),
        *("St.", "Mt.", "Dr.", "G.", "J. R.", "var.", "subsp.", "sp.", "spp.", "cv."),
    ],
)
def test_an_abbreviation_ends_no_sentence(abbreviated: str) -> None:
    text = f"A crane. It is a bird, {abbreviated} Grus grus of the north and the east."
    for most in range(words(f"A crane. It is a bird, {abbreviated}"), words(text)):
        assert cut(text, most) == "A crane."


def test_what_only_looks_like_an_abbreviation_ends_a_sentence() -> None:
    assert cut("The letter A. One two three.", 6, "A") == "The letter A."  # the label itself
    assert cut("A crane of Rome and Paris. One two three.", 9) == "A crane of Rome and Paris."
    assert cut("A crane in vivo, scarf. One two three.", 8) == "A crane in vivo, scarf."


def test_no_occurrence_of_a_name_is_cut_in_two() -> None:
    text = "A great grey owl, one two three four, as every Great Grey Owl of the north is"
    for most in range(6, words(text)):
        kept = cut(text, most, "great grey owl")
        assert kept is not None
        assert not kept.lower().endswith((" great", " great grey"))
    whole = "A photo of a lynx. The lynx is Felis lynx. So it is called."
    assert cut(whole, 11, "lynx", "Felis lynx. So it is") == "A photo of a lynx."
    letters = "鶴" + "x" * 30 + "丹頂鶴" + "x" * 30
    for most in range(2, len(letters)):
        kept_letters = fitting(letters, 1, len, most, names=("丹頂鶴",))
        assert kept_letters == {32: 31, 33: 31}.get(most, most)


def test_a_name_within_a_longer_one_does_not_take_the_label_away() -> None:
    assert cut("A crane bird of the north", 4, "crane", "crane bird") == "A crane"


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
    kept = fitting(text, label_end, words, most, names=("name", "ab b"))
    if kept is None:
        assert words(text[:label_end]) > most
    else:
        assert label_end <= kept <= len(text)
        assert words(text[:kept]) <= most
        assert (kept == len(text)) == (words(text) <= most)
