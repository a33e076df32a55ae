"""What a prompt file leaves to the libraries is written out, or refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import DataError
from pipeline.imagenet import templates
from pipeline.prompt_file import PromptFile, load_prompts

ROWS = [{"wnid": "n02012849", "coarse": "bird"}, {"wnid": "n03126707", "name": "hoist"}]


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def load(**fields: Any) -> PromptFile:
        content = {
            "dataset": "cranes",
            "names_from": "open_clip",
            "classes": ROWS,
            "prompt_sets": {"plain": ["A {label}."]},
            **fields,
        }
        path = tmp_path / "cranes.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not ...}))
        return load_prompts(str(path))

    return load


def test_names_come_by_wnid_and_those_that_are_given_stay(load: Any) -> None:
    assert [item.name for item in load().classes] == ["crane bird", "hoist"]
    assert [item.description for item in load().classes] == [None, None]


def test_glosses_come_by_wnid(load: Any) -> None:
    bird, hoist = load(descriptions_from="timm").classes
    assert "wading bird" in bird.description
    assert "lifts and moves heavy objects" in hoist.description


def test_templates_are_the_80(load: Any) -> None:
    sets = {"clip": {"templates_from": "open_clip", "anchors": "separate"}}
    found = load(prompt_sets=sets).prompt_sets["clip"]
    assert found.templates == templates()
    assert found.anchors == "separate"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"names_from": "timm"}, "names_from: expected open_clip, found 'timm'"),
        ({"descriptions_from": "x"}, "descriptions_from: expected timm"),
        ({"prompt_sets": {"clip": {"templates_from": "x"}}}, "templates_from: expected open_clip"),
        ({"classes": [{"wnid": "n1"}]}, "has no wnid of ImageNet-1K"),
        ({"classes": [{"name": "crane"}]}, "has no wnid of ImageNet-1K"),
        ({"names_from": ...}, "'classes.0.wnid'"),
    ],
)
def test_other_sources_and_ids_are_refused(load: Any, fields: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        load(**fields)
    assert words in str(caught.value)
