"""Templates become sentences: articles, full stops, and where the name ends."""

import time

import pytest

from pipeline.errors import DataError
from pipeline.templates import fields_of, fill


def filled(template: str, name: str = "crane", **fields: str | None) -> str:
    values = {"label": name, "synonym": name, "coarse": None, "description": None, "article": None}
    return fill(template, {**values, **fields}).text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("crane", "A photo of a crane."),
        ("apple", "A photo of an apple."),
        ("Airedale", "A photo of an Airedale."),
        ("hourglass", "A photo of an hourglass."),
        ("unicycle", "A photo of a unicycle."),
        ("European fire salamander", "A photo of a European fire salamander."),
        ("X-ray", "A photo of an X-ray."),
        ("T-shirt/top", "A photo of a T-shirt/top."),
    ],
)
def test_the_article_is_the_one_that_the_name_asks_for(name: str, text: str) -> None:
    assert filled("A photo of {article} {label}.", name) == text


def test_the_article_fits_the_word_that_comes_after_it() -> None:
    assert filled("{article} old {label}", "crane") == "an old crane"
    assert filled("{article} big {label}", "apple") == "a big apple"
    assert (
        filled("{article} {synonym} ({label})", "ray", synonym="eagle ray") == "an eagle ray (ray)"
    )


def test_articles_of_a_thousand_names_take_no_time() -> None:
    filled("{article} {label}")
    began = time.process_time()
    for number in range(1000):
        assert filled("A photo of {article} {label}.", f"x{number}").endswith(f" x{number}.")
    assert time.process_time() - began < 1  # 4 with an engine for each


def test_a_name_that_takes_no_article_gets_none_and_no_gap() -> None:
    assert filled("A photo of {article} {label}.", "trousers", article="") == "A photo of trousers."
    assert filled("{article} {label}", "scissors", article="") == "scissors"
    assert filled("of {article} {label}", "sun", article="the") == "of the sun"


def test_a_description_ends_with_one_full_stop() -> None:
    template = "A {label}. {description}."
    for description in ("A wading bird", "A wading bird.", "A wading bird. ", "A wading bird..."):
        assert filled(template, description=description) == "A crane. A wading bird."
    assert filled("A {label}. {description}", description="A bird.") == "A crane. A bird."
    assert filled("A {label}: {description}!", description="A bird.") == "A crane: A bird.!"


@pytest.mark.parametrize(
    ("template", "before"),
    [
        ("A photo of a {label}, categorized as {coarse}.", "A photo of a crane"),
        ("{coarse}: {label}", "bird crane: crane"),
        ("{label} or {label}", "crane"),
        ("{article} {label} of {article} {coarse}", "a crane"),
        ("{{x}} {label}", "{x} crane"),
    ],
)
def test_the_end_of_the_first_name_is_told(template: str, before: str) -> None:
    coarse = "bird crane" if template.startswith("{coarse}") else "bird"
    values = {"label": "crane", "synonym": "crane", "description": None, "article": None}
    found = fill(template, {**values, "coarse": coarse})
    assert found.text[: found.label_end] == before


def test_a_synonym_is_a_name_too() -> None:
    assert fields_of("A {synonym}.") == ["synonym"]
    with pytest.raises(DataError, match=r"has no \{label\}"):
        fields_of("{article} {coarse}")
