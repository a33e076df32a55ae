"""Prompt files: every class gets its own text, or the file is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import DataError
from pipeline.prompt_file import PromptFile, load_prompts
from pipeline.prompts import prompt_set, sampled


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a prompt file with some fields changed, and load it."""

    def load(**fields: Any) -> PromptFile:
        content = {
            "dataset": "pets",
            "classes": [{"name": "cat", "coarse": "animal"}, {"name": "dog"}],
            "prompt_sets": {"plain": ["A photo of a {label}."], "context": ["{label}, {coarse}"]},
            **fields,
        }
        path = tmp_path / "pets.yaml"
        text = yaml.safe_dump(
            {k: v for k, v in content.items() if v is not ...}, allow_unicode=True
        )
        path.write_text(text, encoding="utf-8")
        return load_prompts(str(path))

    return load


def refusal(call: Any, *arguments: Any, **fields: Any) -> str:
    with pytest.raises(DataError) as caught:
        call(*arguments, **fields)
    return str(caught.value)


def classes(*names: str) -> list[dict[str, str]]:
    return [{"name": name} for name in names]


def test_digits_are_ten_classes_in_numeric_order() -> None:
    prompts = load_prompts("digits")
    assert prompts.dataset == "digits"
    assert [item.name for item in prompts.classes] == [
        "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    ]  # fmt: skip
    assert [item.coarse for item in prompts.classes] == ["even digit", "odd digit"] * 5
    for name in prompts.prompt_sets:
        texts = prompt_set(prompts, name).texts
        assert len({text for texts_T in texts for text in texts_T}) == sum(map(len, texts))


def test_every_bundled_file_fills_all_its_sets() -> None:
    files = sorted(Path(__file__).parents[1].glob("prompts/*.yaml"))
    assert files
    for path in files:
        prompts = load_prompts(path.stem)
        assert prompts == load_prompts(str(path))
        for name in prompts.prompt_sets:
            filled = prompt_set(prompts, name)
            assert len(filled.texts) == len(prompts.classes)
            assert not any("{" in text for texts_T in filled.texts for text in texts_T)


def test_a_set_is_every_class_in_every_template() -> None:
    prompts = load_prompts("digits")
    filled = prompt_set(prompts, "cpa")
    assert filled.name == "digits-cpa"
    assert filled.class_names[3] == "three"
    assert filled.texts[3] == ("A photo of a three, categorized as odd digit.",)
    assert prompt_set(prompts, "plain").texts[0] == ("A photo of a zero.",)


def test_templates_keep_their_order_and_classes_theirs(write: Any) -> None:
    prompts = write(
        classes=classes("dog", "cat"), prompt_sets={"plain": ["b {label}", "a {label}"]}
    )
    assert prompt_set(prompts, "plain").texts == (("b dog", "a dog"), ("b cat", "a cat"))


@pytest.mark.parametrize(
    "name", ["naïve café", "猫", "🙂", "x" * 5000, "{label}", "a {b} c", "100%"]
)
def test_any_name_reaches_the_text_unchanged(write: Any, name: str) -> None:
    prompts = write(classes=classes(name, "dog"))
    assert prompt_set(prompts, "plain").texts[0] == (f"A photo of a {name}.",)


@pytest.mark.parametrize(
    "template", ["{label}{{x}}", "{label}\n{label}", "{description} {label} {coarse}"]
)
def test_templates_may_hold_braces_lines_and_every_field(write: Any, template: str) -> None:
    item = {"name": "cat", "coarse": "animal", "description": "furry"}
    filled = prompt_set(write(classes=[item], prompt_sets={"plain": [template]}), "plain")
    assert filled.texts == ((template.format(label="cat", coarse="animal", description="furry"),),)


def test_several_templates_make_one_averaged_anchor_or_one_each(write: Any) -> None:
    templates = ["A {label}.", "The {label}."]
    prompts = write(
        prompt_sets={"mean": templates, "each": {"templates": templates, "anchors": "separate"}}
    )
    mean, each = prompt_set(prompts, "mean"), prompt_set(prompts, "each")
    assert mean.texts == (("A cat.", "The cat."), ("A dog.", "The dog."))
    assert mean.labelled
    assert each.class_names == ("cat", "cat", "dog", "dog")
    assert each.texts == (("A cat.",), ("The cat.",), ("A dog.",), ("The dog.",))
    assert each.label_ends == ((5,), (7,), (5,), (7,))
    assert not each.labelled
    with pytest.raises(DataError, match="'averaged' or 'separate'"):
        write(prompt_sets={"each": {"templates": templates, "anchors": "apart"}})


def test_a_sample_is_a_function_of_names_and_seed_and_lies_in_the_larger_one(write: Any) -> None:
    names = [f"class {i}" for i in range(40)]
    whole = prompt_set(write(classes=classes(*names)), "plain")
    few, more = sampled(whole, 5, seed=1), sampled(whole, 12, seed=1)
    assert few.name == "pets-plain.5of40-seed1"
    assert set(few.class_names) < set(more.class_names) < set(names)
    assert list(more.class_names) == sorted(more.class_names, key=names.index)
    assert few.texts == tuple((f"A photo of a {name}.",) for name in few.class_names)
    assert not few.labelled
    turned = prompt_set(write(classes=classes(*reversed(names))), "plain")
    assert set(sampled(turned, 5, seed=1).class_names) == set(few.class_names)
    assert set(sampled(whole, 5, seed=2).class_names) != set(few.class_names)
    drawn = {name for seed in range(60) for name in sampled(whole, 5, seed=seed).class_names}
    assert drawn == set(names)
    for count in (0, 40, 41):
        assert "takes 1 to 39 of its 40 classes" in refusal(sampled, whole, count, 0)


def test_a_sample_of_separate_anchors_keeps_a_class_whole(write: Any) -> None:
    sets = {"each": {"templates": ["A {label}.", "The {label}."], "anchors": "separate"}}
    whole = prompt_set(write(classes=classes("cat", "dog", "cow"), prompt_sets=sets), "each")
    part = sampled(whole, 2, 0)
    assert len(part.texts) == 4
    assert part.class_names[0] == part.class_names[1] != part.class_names[2]


# --- descriptions of one's own -------------------------------------------------------------------


@pytest.fixture
def described(write: Any, tmp_path: Path) -> Any:
    """Load the file with descriptions from another one."""
    write(
        classes=[{"name": "cat", "description": "ours"}, {"name": "dog", "description": "ours"}],
        prompt_sets={"plain": ["A {label}."], "cpa": ["A {label}. {description}."]},
    )

    def load(content: Any, name: str = "wikipedia.yaml") -> PromptFile:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return load_prompts(str(tmp_path / "pets.yaml"), str(path))

    return load


@pytest.mark.parametrize("name", ["wikipedia.yaml", "wikipedia.json"])
def test_other_descriptions_take_the_place_of_the_files_own_under_another_name(
    described: Any, name: str
) -> None:
    prompts = described({"dog": "It barks.", "cat": "It purrs."}, name)
    assert set(prompts.prompt_sets) == {"plain", "cpa.wikipedia"}
    found = prompt_set(prompts, "cpa.wikipedia")
    assert found.name == "pets-cpa.wikipedia"
    assert found.texts == (("A cat. It purrs.",), ("A dog. It barks.",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"cat": "x", "dgo": "y"}, "no class is called 'dgo'; did you mean 'dog'?"),
        ({"cat": "x"}, "describes 1 of 2 classes of pets; it lacks 'dog'"),
        ({"cat": "x", "dog": 3}, "'dog'"),
        ({"cat": "x", "dog": "a <end_of_text> b"}, "the tokenizer's own"),
        ({"cat": "x", "dog": " "}, "which 'dog' lacks"),
        (["cat"], "expected a mapping"),
        ("{", "cannot read"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(described: Any, content: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        prompt_set(described(content, "own.json"), "cpa.own")
    assert words in str(caught.value)


def test_missing_descriptions_and_names_that_no_set_can_have_are_told(
    described: Any, tmp_path: Path
) -> None:
    missing = str(tmp_path / "none.yaml")
    described({"cat": "x", "dog": "y"})
    assert "none.yaml" in refusal(load_prompts, str(tmp_path / "pets.yaml"), missing)
    assert "names a prompt set" in refusal(described, {"cat": "x", "dog": "y"}, "my own.json")


# --- files that are refused ----------------------------------------------------------------------


def test_unknown_files_name_the_nearest() -> None:
    assert "no prompt file 'digit': did you mean 'digits'?" in refusal(load_prompts, "digit")


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    missing, broken, binary = (
        tmp_path / f"{name}.yaml" for name in ("missing", "broken", "binary")
    )
    broken.write_text("classes: [", encoding="utf-8")
    binary.write_bytes(b"\xff\xfe\0")
    for path in (missing, broken, binary, tmp_path):
        assert str(path) in refusal(load_prompts, f"{path}" if path.suffix else f"{path}/.yaml")
    for content in ("", "- a\n- b\n", "text"):
        broken.write_text(content)
        assert "expected a mapping" in refusal(load_prompts, str(broken))


def test_python_in_a_prompt_file_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(f"dataset: !!python/object/apply:os.mkdir ['{tmp_path}/owned']\n")
    assert "evil.yaml" in refusal(load_prompts, str(path))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"clases": []}, "unknown key 'clases': did you mean 'classes'?"),
        ({"classes": [{"nmae": "cat"}]}, "unknown key 'classes.0.nmae': did you mean 'name'?"),
        ({"classes": [{"coarse": "animal"}]}, "'classes.0.name' is required"),
        ({"classes": [{"name": True}]}, "'classes.0.name'"),
        ({"classes": [{"name": 3}]}, "'classes.0.name'"),
        ({"classes": ["cat", "dog"]}, "'classes.0'"),
        ({"classes": None}, "'classes'"),
        ({"dataset": ...}, "'dataset' is required"),
        ({"prompt_sets": {"plain": "A {label}."}}, "'prompt_sets.plain'"),
        ({"prompt_sets": {"plain": [None]}}, "'prompt_sets.plain.templates.0'"),
    ],
)
def test_wrong_fields_are_named(write: Any, fields: dict[str, Any], words: str) -> None:
    message = refusal(write, **fields)
    assert words in message
    assert "pets.yaml" in message


def test_no_class_and_no_set_are_refused(write: Any) -> None:
    assert "the list of classes is empty" in refusal(write, classes=[])
    assert "no prompt set" in refusal(write, prompt_sets={})


@pytest.mark.parametrize("name", ["", "  ", "\n", "\u00a0"])
def test_an_empty_name_is_refused(write: Any, name: str) -> None:
    assert "a class has an empty name" in refusal(write, classes=classes("cat", name))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cat", "cat"),
        ("Cat", "cAT"),
        ("café", "cafe\u0301"),  # one letter, or a letter and its accent
        ("CAFÉ", "cafe\u0301"),
        ("straße", "STRASSE"),
        ("cat", " cat "),
        ("red  cat", "red cat"),
        ("red\tcat", "red cat"),
        ("cat & dog", "cat &amp; dog"),  # CLIP's tokenizer undoes the escape
    ],
)
def test_names_that_read_the_same_are_refused(write: Any, one: str, other: str) -> None:
    message = refusal(write, classes=classes("fish", one, other))
    assert "read the same to a teacher" in message
    assert repr(one) in message
    assert repr(other) in message


@pytest.mark.parametrize(
    "mark",
    [
        "<start_of_text>",
        "<end_of_text>",
        "<END_OF_TEXT>",
        "<|endoftext|>",
        "<|startoftext|>",
        "&lt;end_of_text&gt;",
    ],
)
def test_the_tokenizers_own_marks_are_refused_wherever_they_stand(write: Any, mark: str) -> None:
    for field in ("name", "coarse", "description"):
        item = {"name": "dog", field: f"x {mark} y"}
        message = refusal(write, classes=[{"name": "cat"}, item])
        assert "the tokenizer's own" in message
    prompts = write(prompt_sets={"plain": [f"A {{label}} {mark}"]})
    assert "the tokenizer's own" in refusal(prompt_set, prompts, "plain")


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", ".", "..", "a b", "a\nb"])
def test_names_that_folders_of_a_cache_cannot_take_are_refused(write: Any, name: str) -> None:
    assert "letters, digits" in refusal(write, dataset=name)
    assert "letters, digits" in refusal(write, prompt_sets={name: ["A {label}"]})


# --- sets that are refused -----------------------------------------------------------------------


def test_unknown_sets_name_the_nearest(write: Any) -> None:
    message = refusal(prompt_set, write(), "plane")
    assert message == "prompts for pets have no set 'plane': did you mean 'plain'?"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("A photo.", "has no {label}"),
        ("", "has no {label}"),
        ("A {{label}}.", "has no {label}"),
        ("A {coarse}.", "has no {label}"),
        ("A {label} in {place}.", "unknown field 'place'"),
        ("A {label}, {corse}.", "did you mean 'coarse'?"),
        ("A {label} {}.", "unknown field ''"),
        ("A {label} {0}.", "unknown field '0'"),
        ("A {label} {label.name}.", "unknown field 'label.name'"),
        ("A {label} {label[0]}.", "unknown field 'label[0]'"),
        ("A {label", "template 'A {label'"),
        ("A label}", "template 'A label}'"),
        ("A {label:d}.", "plain"),
        ("A {label:{width}}.", "plain"),
        ("A {label:>10}.", "plain"),
        ("A {label!r}.", "plain"),
    ],
)
def test_a_template_with_another_field_is_refused(write: Any, template: str, words: str) -> None:
    prompts = write(prompt_sets={"plain": ["A {label}.", template]})
    message = refusal(prompt_set, prompts, "plain")
    assert words in message
    assert repr(template) in message


def test_a_set_without_templates_is_refused(write: Any) -> None:
    assert "has no template" in refusal(prompt_set, write(prompt_sets={"plain": []}), "plain")


def test_classes_whose_texts_read_the_same_are_refused(write: Any) -> None:
    items = [{"name": "red cat", "coarse": "dog"}, {"name": "Red", "coarse": "cat dog"}]
    prompts = write(classes=items, prompt_sets={"plain": ["{label}"], "all": ["{label} {coarse}"]})
    assert prompt_set(prompts, "plain").texts == (("red cat",), ("Red",))
    message = refusal(prompt_set, prompts, "all")
    assert "template '{label} {coarse}' gives 'red cat' and 'Red' the same text" in message


@pytest.mark.parametrize("empty", [None, "", "  "])
def test_a_class_without_the_field_is_named(write: Any, empty: Any) -> None:
    items = [{"name": "cat", "coarse": "animal"}, {"name": "dog", "coarse": empty}]
    message = refusal(prompt_set, write(classes=items), "context")
    assert message == "template '{label}, {coarse}' needs 'coarse', which 'dog' lacks"
    assert prompt_set(write(classes=items), "plain").class_names == ("cat", "dog")


def test_a_class_field_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(
        "dataset: pets\nclasses: [{name: cat, name: dog}]\nprompt_sets: {plain: ['{label}']}\n",
        encoding="utf-8",
    )
    assert "gives 'name' a second time" in refusal(load_prompts, str(path))
