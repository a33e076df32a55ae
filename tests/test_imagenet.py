"""ImageNet prompts stand on facts: open_clip names, WordNet coarse labels, timm glosses."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.imagenet import class_names, glosses, synsets, templates
from pipeline.prompt_file import PromptFile, load_prompts
from pipeline.prompts import prompt_set
from tests.runs import said_elsewhere

ROOT = Path(__file__).parents[1]
WORDNET = Path("/usr/share/wordnet/data.noun")


@pytest.fixture(scope="module")
def prompts() -> PromptFile:
    return load_prompts("imagenet-1k")


def test_synsets_are_the_1000_in_order() -> None:
    assert len(set(synsets())) == 1000
    assert list(synsets()) == sorted(synsets())
    assert len(synsets("imagenet-22k")) == 21_841


@pytest.mark.parametrize(
    ("wnid", "label", "name", "coarse"),
    [
        ("n01440764", 0, "tench", "cyprinid"),
        ("n02012849", 134, "crane bird", "wading bird"),
        ("n03126707", 517, "construction crane", "lifting device"),
        ("n02113186", 264, "Cardigan Welsh Corgi", "dog"),
        ("n02963159", 474, "cardigan", "sweater"),
        ("n03710637", 638, "tights", "hosiery"),
        ("n03710721", 639, "one-piece bathing suit", "swimsuit"),
        ("n03773504", 657, "missile", "rocket"),
        ("n04008634", 744, "projectile", "weapon"),
        ("n04355933", 836, "sunglass", "converging lens"),
        ("n04356056", 837, "sunglasses", "spectacles"),
        ("n15075141", 999, "toilet paper", "tissue"),
    ],
)
def test_classes_where_a_mistake_would_show(
    prompts: PromptFile, wnid: str, label: int, name: str, coarse: str
) -> None:
    assert synsets().index(wnid) == label
    found = prompts.classes[label]
    assert (found.name, found.coarse) == (name, coarse)


def test_names_are_open_clips_but_for_the_two_that_stand_twice(prompts: PromptFile) -> None:
    import open_clip

    theirs, names = open_clip.IMAGENET_CLASSNAMES, class_names()
    assert len({name.casefold() for name in theirs}) == 998
    assert len({name.casefold() for name in names}) == 1000
    assert {i for i, name in enumerate(names) if name != theirs[i]} == {744, 836}
    assert tuple(item.name for item in prompts.classes) == names


def test_templates_are_open_clips_80(prompts: PromptFile) -> None:
    import open_clip

    theirs = [template("crane") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert [template.format(label="crane") for template in templates()] == theirs
    assert len(prompt_set(prompts, "clip").texts[0]) == 80


def test_every_class_has_a_gloss(prompts: PromptFile) -> None:
    assert all(item.description for item in prompts.classes)
    assert glosses(["n02012849"])[0].startswith("large long-necked wading bird")


@pytest.mark.skipif(not WORDNET.exists(), reason="Debian's package wordnet-base is absent")
def test_coarse_labels_are_what_the_rule_makes_of_wordnet() -> None:
    command = [sys.executable, str(ROOT / "tools/imagenet_coarse.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_the_libraries_it_is_said_what_is_missing() -> None:
    said = said_elsewhere("""
import sys
sys.modules["open_clip"] = None
from pipeline.errors import LibraryError
from pipeline.prompt_file import load_prompts
try:
    load_prompts("imagenet-1k")
except LibraryError as error:
    print(error)
""")
    assert "open_clip_torch, which is not installed" in said
