"""`beamclip cache`: what the commands print, and how they exit."""

import json
import shutil
from pathlib import Path

import pytest

from tests.audit.damage import chunk, flip
from tests.conftest import Invoke
from tests.inputs import build
from tests.test_cli import fails
from tests.trees import cache_digests

MILD = "train-000000.mild.v0-1"


def test_a_clean_cache_verifies_with_exit_code_0(beamclip: Invoke, sealed_cache: Path) -> None:
    fast = beamclip("cache", "verify", sealed_cache)
    assert (fast.code, fast.err) == (0, "")
    assert "5 units (chunks not read: --full does), nothing wrong" in fast.out
    full = json.loads(beamclip("cache", "verify", sealed_cache, "--full", "--json").out)
    assert (full["full"], full["sealed"], full["problems"], full["reembed"]) == (
        True,
        True,
        [],
        None,
    )


def test_damage_exits_3_and_is_named_in_words_and_in_json(
    beamclip: Invoke, cache_copy: Path
) -> None:
    flip(chunk(cache_copy, MILD, "targets", 1))
    assert beamclip("cache", "verify", cache_copy).code == 0  # no chunk is read
    words = beamclip("cache", "verify", cache_copy, "--full")
    fails(words, 3, "1 problems in", "beamclip cache repair")
    assert f"units/{MILD}, targets, view 1: is damaged" in words.out
    told = beamclip("cache", "verify", cache_copy, "--full", "--json")
    assert told.code == 3
    (problem,) = json.loads(told.out)["problems"]
    assert (problem["place"], problem["array"], problem["view"]) == (f"units/{MILD}", "targets", 1)


def test_verifying_with_the_live_teacher(
    beamclip: Invoke, sealed_cache: Path, shards_dir: Path
) -> None:
    shared = ("cache", "verify", sealed_cache, "--shards", shards_dir, "--device", "cpu")
    outcome = beamclip(*shared, "--reembed", "10%", "--seed", "3", "--json")
    assert outcome.code == 0, outcome.err
    again = json.loads(outcome.out)["reembed"]
    assert (again["share"], again["seed"]) == (0.1, 3)
    assert again["minimum"] > 1 - 1e-6
    words = beamclip(*shared, "--reembed", "10")
    assert "re-embedded 10 targets (seed 0), cosine: minimum 1 - " in words.out
    beyond = beamclip(*shared, "--reembed", "10%", "--bound", "1", "--json")
    assert beyond.code == 3
    assert "have a cosine below 1.0" in json.loads(beyond.out)["problems"][0]["what"]


@pytest.mark.parametrize(
    "options",
    [
        ("--reembed", "1%"),
        ("--shards", "shards"),
        ("--reembed", "0", "--shards", "s"),
        ("--reembed", "101%", "--shards", "s"),
        ("--reembed", "some", "--shards", "s"),
        ("--bound", "2"),
    ],
)
def test_wrong_options_are_usage_errors(
    beamclip: Invoke, sealed_cache: Path, options: tuple[str, ...]
) -> None:
    fails(beamclip("cache", "verify", sealed_cache, *options), 2, "Usage:")


def test_repair_prints_what_it_did(
    beamclip: Invoke, cache_copy: Path, sealed_cache: Path, shards_dir: Path
) -> None:
    flip(chunk(cache_copy, MILD, "targets", 1))
    shared = ("cache", "repair", cache_copy, "--shards", shards_dir, "--device", "cpu")
    outcome = beamclip(*shared)
    assert outcome.code == 0, outcome.err
    assert "1 problems mended, sealed" in outcome.out
    assert f"made anew: units/{MILD}" in outcome.out
    assert cache_digests(cache_copy) == cache_digests(sealed_cache)
    assert json.loads(beamclip(*shared, "--json").out)["problems"] == []


def test_info_prints_the_same_in_words_and_in_json(beamclip: Invoke, sealed_cache: Path) -> None:
    words, told = (
        beamclip("cache", "info", sealed_cache),
        beamclip("cache", "info", sealed_cache, "--json"),
    )
    assert (words.code, told.code) == (0, 0)
    info = json.loads(told.out)
    assert (info["sealed"], info["splits"]["train"]["samples"]) == (True, 24)
    assert "generation 0, sealed" in words.out
    top1 = info["zeroshot"]["test"]["shapes-plain"]
    assert "teacher's zero-shot top-1 on test: shapes-context" in words.out
    assert f"shapes-plain {top1:.4f}" in words.out


def test_diff_exits_as_diff_does(
    beamclip: Invoke, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(sealed_cache, tmp_path / "copy")
    same = beamclip("cache", "diff", sealed_cache, copy, "--json")
    assert (same.code, json.loads(same.out)["equal"]) == (0, True)
    other = build(tmp_path / "other", shards_dir, recipe_file, "schedule.seed=1")
    differ = beamclip("cache", "diff", sealed_cache, other)
    assert differ.code == 1
    assert "schedules.mild.seed: 0 | 1" in differ.out
    assert (
        f"units/{MILD}: targets views 0-1, norms views 0-1, params views 0-1, targets apart by"
        in differ.out
    )
    fails(beamclip("cache", "diff", sealed_cache, tmp_path / "none"), 2, "no cache in")


@pytest.mark.parametrize("command", ["info", "verify", "repair"])
def test_no_cache_exits_1(beamclip: Invoke, tmp_path: Path, shards_dir: Path, command: str) -> None:
    shards = ("--shards", shards_dir) if command == "repair" else ()
    fails(beamclip("cache", command, tmp_path / "none", *shards), 1, "no cache in")
    assert not (tmp_path / "none").exists()
