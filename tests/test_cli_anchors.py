"""The anchors commands: what they print, and how they exit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cache.reader import read_anchors
from pipeline.errors import CacheError
from pipeline.shards import write_shards
from tests.conftest import Invoke
from tests.inputs import build, labelled_samples
from tests.test_cli import fails
from tests.trees import tree_stamps


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


def test_a_set_is_removed_and_all_else_stays(beamclip: Invoke, cache_copy: Path) -> None:
    before = tree_stamps(cache_copy / "units") | tree_stamps(cache_copy / "anchors/shapes-plain")
    removed = beamclip("anchors", "remove", cache_copy, "shapes-context")
    assert removed.out == "shapes-context: removed\n"
    with pytest.raises(CacheError, match="no anchors 'shapes-context'"):
        read_anchors(cache_copy, "shapes-context")
    after = tree_stamps(cache_copy / "units") | tree_stamps(cache_copy / "anchors/shapes-plain")
    assert after == before
    assert beamclip("cache", "info", cache_copy).code == 0
    fails(beamclip("anchors", "remove", cache_copy, "shapes-plan"), 1, "mean 'shapes-plain'")
    as_json = json.loads(beamclip("anchors", "remove", cache_copy, "shapes-plain", "--json").out)
    assert as_json["removed"] == "shapes-plain"


def test_a_sample_is_added_by_its_size_and_seed(
    beamclip: Invoke, cache_copy: Path, recipe_file: Path
) -> None:
    file = recipe_file.with_name("shapes-prompts.yaml")
    given = ("anchors", "add", cache_copy, "--prompts", file, "--sets", "plain", "--device", "cpu")
    first = beamclip(*given, "--sample", 2)
    assert first.out == "shapes-plain.2of3-seed0: added\n"
    drawn = set()
    for seed in range(1, 8):
        name = f"shapes-plain.2of3-seed{seed}"
        assert beamclip(*given, "--sample", 2, "--seed", seed).out == f"{name}: added\n"
        drawn.add(read_anchors(cache_copy, name).class_names)
    assert len(drawn) > 1
    fails(beamclip(*given, "--sample", 3), 1, "takes 1 to 2 of its 3 classes, not 3")
    fails(beamclip(*given, "--seed", 3), 2, "--seed says which --sample; give both")


def test_descriptions_of_ones_own_are_added_and_checked_under_their_name(
    beamclip: Invoke, cache_copy: Path, tmp_path: Path
) -> None:
    prompts, own = tmp_path / "mine.yaml", tmp_path / "wiki.json"
    prompts.write_text(
        "dataset: mine\nclasses: [{name: cat, description: x}, {name: dog, description: y}]\n"
        "prompt_sets: {plain: ['A {label}.'], cpa: ['A {label}. {description}.']}\n"
    )
    own.write_text(json.dumps({"cat": "It purrs.", "dog": "It barks."}))
    given = (cache_copy, "--prompts", prompts, "--descriptions", own)
    added = beamclip("anchors", "add", *given, "--device", "cpu")
    assert added.out.splitlines() == ["mine-plain: added", "mine-cpa.wiki: added"]
    assert read_anchors(cache_copy, "mine-cpa.wiki").texts == (
        ("A cat. It purrs.",),
        ("A dog. It barks.",),
    )
    checked = beamclip("anchors", "check", *given, "--sets", "cpa.wiki")
    fails(checked, 1, "label 2")  # the shards have three classes
    own.write_text(json.dumps({"cat": "It purrs.", "dog": "It howls."}))
    changed = beamclip("anchors", "check", *given, "--sets", "cpa.wiki")
    fails(changed, 1, "mine-cpa.wiki.texts.1.0", "It howls.")


def test_a_set_is_measured_by_the_images_of_a_split_beside_another_set(
    beamclip: Invoke, sealed_cache: Path
) -> None:
    words = ("anchors", "check", sealed_cache, "--set", "shapes-context")
    plain = beamclip(*words)
    assert plain.out.startswith("shapes-context: 3 classes, 24 images of train, labelled\n")
    beside = beamclip(*words, "--against", "shapes-plain", "--split", "test")
    assert beside.out.startswith("shapes-context: 3 classes, 12 images of test, labelled\n")
    assert "before: shapes-plain; " in beside.out
    found = json.loads(
        beamclip(*words, "--against", "shapes-plain", "--split", "test", "--json").out
    )
    assert (found["against"], found["split"], found["labelled"]) == ("shapes-plain", "test", 12)
    assert {item["name"] for item in found["classes"]} == {
        f"{colour} square" for colour in ("red", "green", "blue")
    }
    assert all(item["before"]["recall"] is not None for item in found["classes"])
    fails(beamclip(*words, "--split", "val"), 1, "no split 'val'")
    fails(beamclip(*words, "--against", "shapes-plan"), 1, "did you mean 'shapes-plain'")
    fails(beamclip("anchors", "check", sealed_cache), 2, "give --prompts FILE or --set NAME")


def test_a_set_is_measured_without_open_clip_and_with_the_shards_gone(
    tmp_path: Path, recipe_file: Path
) -> None:
    code = """
import sys
sys.modules["open_clip"] = sys.modules["torch"] = None
from pipeline.cli import main
main(sys.argv[1:])
"""
    shards = tmp_path / "shards"
    write_shards(labelled_samples(9), shards, "train", per_shard=9)
    cache = build(tmp_path / "cache", shards, recipe_file)
    shutil.rmtree(shards)
    words = ["anchors", "check", str(cache), "--set", "shapes-context", "--against", "shapes-plain"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "9 images of train, labelled" in done.stdout
