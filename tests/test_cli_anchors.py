"""The anchors commands: what they print, and how they exit."""

import json
from pathlib import Path

from tests.conftest import Invoke
from tests.test_cli import fails


def test_anchors_are_added_listed_shown_and_checked(
    beamclip: Invoke, cache_copy: Path, recipe_file: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "more.yaml"
    text = recipe_file.with_name("shapes-prompts.yaml").read_text(encoding="utf-8")
    prompts.write_text(text.replace("dataset: shapes", "dataset: more"), encoding="utf-8")
    given = (cache_copy, "--prompts", prompts)
    fails(beamclip("anchors", "check", *given), 1, "more-plain", "beamclip anchors add")
    added = beamclip("anchors", "add", *given, "--sets", "plain", "--device", "cpu", "--json")
    assert added.code == 0, added.err
    assert json.loads(added.out)["added"] == {"more-plain": True}
    again = beamclip("anchors", "add", *given, "--sets", "plain,context", "--device", "cpu")
    assert again.out.splitlines() == ["more-plain: there", "more-context: added"]
    listed = beamclip("anchors", "list", cache_copy)
    assert [line.split(":")[0] for line in listed.out.splitlines()] == [
        *("more-context", "more-plain", "shapes-context", "shapes-plain"),
    ]
    as_json = json.loads(beamclip("anchors", "list", cache_copy, "--json").out)
    assert as_json["anchors"][1]["name"] == "more-plain"
    shown = beamclip("anchors", "show", cache_copy, "more-plain")
    for part in ("3 classes, 2 templates", "red square, green square", "template: A drawing of a"):
        assert part in shown.out
    assert "cosine" in shown.out
    pairs = json.loads(beamclip("anchors", "show", cache_copy, "more-plain", "--json").out)
    assert len(pairs["closest"]) == 3
    checked = beamclip("anchors", "check", *given)
    assert checked.out == "more-context, more-plain: as cached (labels too)\n"


def test_anchors_that_do_not_agree_exit_1_and_say_where(
    beamclip: Invoke, cache_copy: Path, recipe_file: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "edited.yaml"
    text = recipe_file.with_name("shapes-prompts.yaml").read_text(encoding="utf-8")
    prompts.write_text(text.replace("green", "olive"), encoding="utf-8")
    given = (cache_copy, "--prompts", prompts)
    fails(beamclip("anchors", "check", *given), 1, "shapes-plain.class_names.1", "olive square")
    fails(beamclip("anchors", "add", *given, "--device", "cpu"), 1, "from other prompts")
    fails(beamclip("anchors", "show", cache_copy, "shapes-plan"), 1, "did you mean 'shapes-plain'")
    fails(beamclip("anchors", "list", tmp_path / "none"), 1, "no cache in")
