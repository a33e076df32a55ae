"""Options: strict reading, writing back, naming what differs."""

import datetime
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, field
from typing import Any

import pytest

from pipeline.errors import RecipeError
from pipeline.options import differences, flatten, nearest, options, parse, to_mapping


@options
class Inner:
    """Options one level down."""

    rate: float = 0.5
    steps: int = 3

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"rate is not negative: {self.rate}")


@options
class Outer:
    """Options of every kind that recipes use."""

    name: str
    count: int = 1
    flag: bool = False
    note: str | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    inner: Inner = Inner()
    list_of: tuple[Inner, ...] = ()
    named: dict[str, Inner] = field(default_factory=dict)
    loose: dict[str, Any] = field(default_factory=dict)


def refusal(mapping: Any) -> str:
    """Return the message with which `mapping` is refused."""
    with pytest.raises(RecipeError) as caught:
        parse(Outer, mapping, where="recipe x.yaml")
    return str(caught.value)


def test_plain_values_become_typed_options() -> None:
    found = parse(
        Outer,
        {
            "name": "a",
            "pair": [1, 2.5],
            "inner": {"rate": 1},
            "list_of": [{"steps": 4}],
            "named": {"b": {}},
        },
        where="here",
    )
    assert found == Outer(
        name="a",
        pair=(1.0, 2.5),
        inner=Inner(rate=1.0),
        list_of=(Inner(steps=4),),
        named={"b": Inner()},
    )
    assert isinstance(found.pair, tuple)
    assert isinstance(found.inner.rate, float)


def test_reading_back_what_was_written_gives_the_same_options() -> None:
    before = Outer(
        name="ä ∑ 🙂",
        flag=True,
        pair=(1e-9, 2.0),
        list_of=(Inner(), Inner(steps=9)),
        loose={"x": [1]},
    )
    plain = to_mapping(before)
    assert plain["pair"] == [1e-9, 2.0]
    assert plain["inner"] == {"rate": 0.5, "steps": 3}
    assert parse(Outer, plain, where="here") == before


def test_options_cannot_be_changed_or_given_by_position() -> None:
    with pytest.raises(FrozenInstanceError):
        Inner().rate = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        Inner(0.5)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("mapping", "named"),
    [
        ({"count": "3"}, "count"),
        ({"count": True}, "count"),
        ({"count": 1.5}, "count"),
        ({"count": 1.0}, "count"),
        ({"flag": 1}, "flag"),
        ({"flag": "yes"}, "flag"),
        ({"note": 3}, "note"),
        ({"note": False}, "note"),
        ({"inner": {"rate": "0.5"}}, "inner.rate"),
        ({"inner": {"rate": True}}, "inner.rate"),
        ({"inner": {"rate": None}}, "inner.rate"),
        ({"inner": {"rate": float("nan")}}, "inner.rate"),
        ({"inner": {"rate": float("inf")}}, "inner.rate"),
        ({"inner": 3}, "inner"),
        ({"pair": 1.0}, "pair"),
        ({"pair": "ab"}, "pair"),
        ({"pair": [1.0]}, "pair"),
        ({"pair": [1.0, 2.0, 3.0]}, "pair"),
        ({"list_of": {"steps": 1}}, "list_of"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(mapping: Mapping[str, Any], named: str) -> None:
    message = refusal({"name": "a", **mapping})
    assert message.startswith("recipe x.yaml:\n")
    assert f"'{named}" in message


@pytest.mark.parametrize("value", [datetime.date(2026, 1, 1), b"raw", {1, 2}, "\ud800"])
def test_what_only_yaml_can_say_is_refused(value: object) -> None:
    assert "recipe x.yaml" in refusal({"name": value})


def test_a_mapping_that_holds_itself_is_refused() -> None:
    endless: dict[str, Any] = {"name": "a"}
    endless["loose"] = endless
    assert "recipe x.yaml" in refusal(endless)


def test_a_number_that_yaml_took_for_text_is_explained() -> None:
    assert "1.0e-3" in refusal({"name": "a", "inner": {"rate": "1e-3"}})


def test_unknown_keys_name_the_nearest_valid_one() -> None:
    message = refusal(
        {
            "nane": "a",
            "inner": {"ratte": 1},
            "list_of": [{"step": 1}],
            "named": {"b": {"stepz": 1}},
            "zzz": 1,
        }
    )
    assert "unknown key 'nane': did you mean 'name'?" in message
    assert "unknown key 'inner.ratte': did you mean 'rate'?" in message
    assert "unknown key 'list_of.0.step': did you mean 'steps'?" in message
    assert "unknown key 'named.b.stepz': did you mean 'steps'?" in message
    assert "unknown key 'zzz': valid: count, flag" in message
    assert "'name' is required" in message


def test_own_checks_speak_for_themselves() -> None:
    message = refusal({"name": "a", "inner": {"rate": -1}})
    assert message == "recipe x.yaml:\n  'inner': rate is not negative: -1.0"


@pytest.mark.parametrize("nothing", [None, [], "text", 3])
def test_no_mapping_at_all_is_refused(nothing: object) -> None:
    assert refusal(nothing).startswith("recipe x.yaml:\n  expected a mapping")


def test_flatten_keeps_empty_values() -> None:
    assert flatten({"a": {"b": [1, {}]}, "c": []}) == {"a.b.0": 1, "a.b.1": {}, "c": []}
    assert flatten({}) == {}


def test_differences_name_fields_on_both_sides() -> None:
    old = {"same": 1, "a": {"x": 1, "gone": 2}, "list": [1, 2], "was_empty": []}
    new = {"same": 1, "a": {"x": 2, "new": 3}, "list": [1, 2, 3]}
    assert differences(old, new) == [
        ("a.gone", 2, "(absent)"),
        ("a.new", "(absent)", 3),
        ("a.x", 1, 2),
        ("list.2", "(absent)", 3),
        ("was_empty", [], "(absent)"),
    ]


def test_differences_of_equal_values_are_none() -> None:
    value = to_mapping(Outer(name="a", named={"b": Inner()}))
    assert differences(value, to_mapping(parse(Outer, value, where="here"))) == []
    assert differences((1, 2), [1, 2]) == []


def test_nearest_falls_back_to_the_list() -> None:
    assert nearest("bicubc", ["bilinear", "bicubic"]) == "did you mean 'bicubic'?"
    assert nearest("qqq", ["b", "a"]) == "valid: a, b"
