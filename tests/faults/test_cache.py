"""Damage to a published cache: an error when read, named by verify, mended by repair alone."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.cache import layout
from pipeline.cache.reader import TargetCache, read_anchors, read_manifest
from pipeline.errors import CacheError
from tests.audit.damage import DAMAGES, chunk, cut, flip, swap
from tests.conftest import Invoke
from tests.faults.law import check_law
from tests.inputs import build
from tests.trees import cache_digests, tree_digests

MILD, EVAL, TEST = "train-000000.mild.v0-1", "train-000001.eval.v0-0", "test-000000.eval.v0-0"


def read_everything(cache: Path) -> None:
    """Read all that stage two can ask of a cache, as it asks."""
    for split, content in read_manifest(cache)["splits"].items():
        for schedule in content["views"]:
            opened = TargetCache.open(cache, split, schedule)
            for name in layout.INDEX_COLUMNS:
                opened.column(name)
            assert len(opened.keys) == len(opened)
            for view in range(opened.num_views):
                opened.targets(np.arange(len(opened)), view)
                opened.view_params(np.arange(len(opened)), view)
    for folder in (cache / "anchors").glob("*/"):
        read_anchors(cache, folder.name)


def files_of(cache: Path) -> dict[str, tuple[str, int]]:
    """Return content and time of every file of the cache's units and anchors."""
    digests = tree_digests(cache, "units", "anchors")
    return {name: (digest, (cache / name).stat().st_mtime_ns) for name, digest in digests.items()}


def check_found_and_mended(
    beamclip: Invoke,
    cache: Path,
    clean: Path,
    shards: Path,
    damage: Callable[[], object],
    found: set[tuple[str, str | None, int | None]],
    *,
    read: bool = True,
) -> None:
    """Damage a cache; verify must find just that, and repair make just that anew.

    read: whether stage two reads what is damaged, and must refuse it.
    """
    before = files_of(cache)
    damage()
    if read:
        with pytest.raises(CacheError):
            read_everything(cache)
    verified = beamclip("cache", "verify", cache, "--full", "--json")
    assert verified.code == 3, verified.out
    problems = json.loads(verified.out)["problems"]
    assert {(p["place"], p["array"], p["view"]) for p in problems} == found
    assert "Traceback" not in verified.err
    repaired = beamclip("cache", "repair", cache, "--shards", shards, "--device", "cpu", "--json")
    assert repaired.code == 0, repaired.err
    redone = {place for place, _, _ in found if place.split("/")[0] in ("units", "anchors")}
    after = files_of(cache)
    touched = {name for name in before if after.get(name) != before[name]}
    assert {"/".join(name.split("/")[:2]) for name in touched} == redone
    assert beamclip("cache", "verify", cache, "--full").code == 0
    assert check_law(cache, exit_code=0).arrays == check_law(clean).arrays
    assert cache_digests(cache) == cache_digests(clean)


@pytest.mark.parametrize(
    ("unit", "array", "view"),
    [
        (MILD, "targets", 1),
        pytest.param(MILD, "params", 0, marks=pytest.mark.slow),
        pytest.param(TEST, "valid", None, marks=pytest.mark.slow),
        pytest.param(EVAL, "keys", None, marks=pytest.mark.slow),
        pytest.param(TEST, "samples", None, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_chunk(
    beamclip: Invoke,
    cache_copy: Path,
    sealed_cache: Path,
    shards_dir: Path,
    damage: str,
    unit: str,
    array: str,
    view: int | None,
) -> None:
    check_found_and_mended(
        beamclip,
        cache_copy,
        sealed_cache,
        shards_dir,
        lambda: DAMAGES[damage](chunk(cache_copy, unit, array, view)),
        {(f"units/{unit}", array, view)},
        read=array in ("targets", "norms", "params"),  # the rest stage two reads from the index
    )


def test_two_swapped_chunks(
    beamclip: Invoke, cache_copy: Path, sealed_cache: Path, shards_dir: Path
) -> None:
    check_found_and_mended(
        beamclip,
        cache_copy,
        sealed_cache,
        shards_dir,
        lambda: swap(*(chunk(cache_copy, MILD, "targets", view) for view in (0, 1))),
        {(f"units/{MILD}", "targets", 0), (f"units/{MILD}", "targets", 1)},
    )


def test_a_chunk_and_a_unit_of_an_older_run(
    beamclip: Invoke,
    cache_copy: Path,
    sealed_cache: Path,
    shards_dir: Path,
    recipe_file: Path,
    tmp_path: Path,
) -> None:
    older = build(tmp_path / "older", shards_dir, recipe_file, "schedule.seed=1")

    def damage() -> None:
        shutil.copyfile(chunk(older, MILD, "targets", 1), chunk(cache_copy, MILD, "targets", 1))
        other = MILD.replace("000000", "000001")
        shutil.rmtree(cache_copy / "units" / other)
        shutil.copytree(older / "units" / other, cache_copy / "units" / other)

    check_found_and_mended(
        beamclip,
        cache_copy,
        sealed_cache,
        shards_dir,
        damage,
        {(f"units/{MILD}", "targets", 1), ("units/train-000001.mild.v0-1", None, None)},
    )


@pytest.mark.parametrize(
    ("file", "place", "array"),
    [
        (f"units/{MILD}/zarr.json", f"units/{MILD}", None),
        (f"units/{MILD}/targets/zarr.json", f"units/{MILD}", "targets"),
        ("anchors/shapes-plain/zarr.json", "anchors/shapes-plain", None),
        ("anchors/shapes-plain/texts/zarr.json", "anchors/shapes-plain", "texts"),
        ("index/000000/seal.json", "index/000000/seal.json", None),
        ("index/000000/train.digest.npy", "index/000000/train.digest.npy", None),
    ],
)
@pytest.mark.parametrize(
    "damage",
    [
        "cut",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("empty", "zeros", "deleted")),
    ],
)
def test_damaged_metadata(
    beamclip: Invoke,
    cache_copy: Path,
    sealed_cache: Path,
    shards_dir: Path,
    file: str,
    place: str,
    array: str | None,
    damage: str,
) -> None:
    views: list[int | None] = [0, 1] if array == "targets" else [None]
    check_found_and_mended(
        beamclip,
        cache_copy,
        sealed_cache,
        shards_dir,
        lambda: DAMAGES[damage](cache_copy / file),
        {(place, array, view) for view in views},
        read=(damage, place) != ("deleted", "anchors/shapes-plain") or array is not None,
    )


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_stops_everything_and_nothing_is_touched(
    beamclip: Invoke, cache_copy: Path, shards_dir: Path, recipe_file: Path, damage: str
) -> None:
    path = layout.manifest_path(cache_copy, 0)
    whole = path.read_bytes()
    DAMAGES[damage](path)
    before = tree_digests(cache_copy, "units", "anchors", "index", "manifest")
    with pytest.raises(CacheError):
        read_everything(cache_copy)
    verified = beamclip("cache", "verify", cache_copy)
    assert verified.code == 3
    assert "manifest/000000.json: " in verified.out
    repaired = beamclip("cache", "repair", cache_copy, "--shards", shards_dir, "--device", "cpu")
    assert repaired.code == 1, repaired.out
    assert tree_digests(cache_copy, "units", "anchors", "index", "manifest") == before
    path.write_bytes(whole)
    assert beamclip("cache", "verify", cache_copy, "--full").code == 0
    check_law(cache_copy, exit_code=0)


def test_stray_temporaries_are_ignored_and_swept(
    beamclip: Invoke, cache_copy: Path, shards_dir: Path, recipe_file: Path
) -> None:
    half = Path(shutil.copytree(cache_copy / "units" / MILD, cache_copy / ".tmp" / "unit.0123"))
    (half / "zarr.json").unlink()
    file = chunk(cache_copy, MILD, "targets", 0)
    file.with_name("0.5f0e.partial").write_bytes(b"half")
    read_everything(cache_copy)
    assert beamclip("cache", "verify", cache_copy, "--full").code == 0
    build(cache_copy, shards_dir, recipe_file)
    assert not (cache_copy / ".tmp").exists()
    check_law(cache_copy, exit_code=0)


def test_a_copy_made_file_by_file_is_the_same_cache(
    beamclip: Invoke, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    """As rsync does without -t: contents alone, other times and order."""
    copy = tmp_path / "copy"
    for file in sorted(sealed_cache.rglob("*"), reverse=True):
        if file.is_file():
            target = copy / file.relative_to(sealed_cache)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    read_everything(copy)
    assert beamclip("cache", "verify", copy, "--full").code == 0
    assert beamclip("cache", "diff", sealed_cache, copy).code == 0
    build(copy, shards_dir, recipe_file)
    assert cache_digests(copy) == cache_digests(sealed_cache)


@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")
def test_a_copy_by_rsync_is_the_same_cache(
    beamclip: Invoke, sealed_cache: Path, tmp_path: Path
) -> None:
    command = ["rsync", "-a", f"{sealed_cache}/", f"{tmp_path}/copy"]
    subprocess.run(command, check=True, timeout=60)
    assert beamclip("cache", "verify", tmp_path / "copy", "--full").code == 0
    assert cache_digests(tmp_path / "copy") == cache_digests(sealed_cache)


def test_a_copy_that_was_cut_short_is_told_and_finished(
    beamclip: Invoke, cache_copy: Path, sealed_cache: Path, shards_dir: Path
) -> None:
    """A copy that stopped: one unit half there, one not at all, no index."""

    def damage() -> None:
        shutil.rmtree(cache_copy / "units" / MILD / "params")
        shutil.rmtree(cache_copy / "units" / TEST)
        shutil.rmtree(cache_copy / "index")

    check_found_and_mended(
        beamclip,
        cache_copy,
        sealed_cache,
        shards_dir,
        damage,
        {
            (f"units/{MILD}", "params", 0),
            (f"units/{MILD}", "params", 1),
            (f"units/{TEST}", None, None),
            ("index/000000", None, None),
        },
    )


def test_a_newer_format_is_refused_with_what_to_do(
    beamclip: Invoke, cache_copy: Path, shards_dir: Path
) -> None:
    path = layout.manifest_path(cache_copy, 0)
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**manifest, "version": 99}), encoding="utf-8")
    before = tree_digests(cache_copy, "units", "anchors", "index", "manifest")
    for command in (
        ("cache", "info", cache_copy),
        ("cache", "verify", cache_copy),
        ("cache", "repair", cache_copy, "--shards", shards_dir),
        ("cache", "diff", cache_copy, cache_copy),
    ):
        outcome = beamclip(*command)
        assert outcome.code in (1, 2, 3)
        told = outcome.out + outcome.err
        assert "version 99; read it with the beamclip release that wrote it" in told
    assert tree_digests(cache_copy, "units", "anchors", "index", "manifest") == before


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("schedule.crop_scale=[0.5, 1.0]", "schedule.crop_scale.0: cache has 0.7, asked for 0.5"),
        ("views=3", "views: cache has 2, asked for 3"),
        ("decode.max_pixels=1000000", "decode.max_pixels: cache has 50000000"),
        ("prompts.anchors=other", "have no set 'other'"),
        ("prompts.file={classes}", "class_names.0: cache has 'red square'"),
    ],
)
def test_a_student_that_does_not_fit_is_refused_before_the_first_step(
    beamclip: Invoke,
    sealed_cache: Path,
    shards_dir: Path,
    recipe_file: Path,
    tmp_path: Path,
    override: str,
    told: str,
) -> None:
    classes = tmp_path / "classes.yaml"
    text = recipe_file.with_name("shapes-prompts.yaml").read_text(encoding="utf-8")
    classes.write_text(text.replace("red square", "red circle"), encoding="utf-8")
    outcome = beamclip(
        *("train-student", "--cache", sealed_cache, "--shards", shards_dir),
        *("--recipe", recipe_file, "--run", tmp_path / "run"),
        *("--set", override.format(classes=classes)),
    )
    assert outcome.code == 1
    assert told in outcome.err
    assert not (tmp_path / "run").exists()


def test_an_unsealed_cache_is_refused_by_training(
    beamclip: Invoke, cache_copy: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    shutil.rmtree(cache_copy / "index")
    outcome = beamclip(
        *("train-student", "--cache", cache_copy, "--shards", shards_dir),
        *("--recipe", recipe_file, "--run", tmp_path / "run"),
    )
    assert outcome.code == 1
    assert "is not sealed" in outcome.err
    assert not (tmp_path / "run").exists()
    assert not check_law(cache_copy).sealed


def test_a_shard_that_is_cut_while_a_unit_waits_for_it_loses_nothing_else(
    beamclip: Invoke, cache_copy: Path, sealed_cache: Path, shards_dir: Path, tmp_path: Path
) -> None:
    """Repair cannot remake a unit from a damaged shard: it refuses, and can be run again."""
    shards = Path(shutil.copytree(shards_dir, tmp_path / "shards"))
    flip(chunk(cache_copy, MILD, "targets", 0))
    before = files_of(cache_copy)
    cut(shards / "train-000000.tar")
    outcome = beamclip("cache", "repair", cache_copy, "--shards", shards, "--device", "cpu")
    assert outcome.code == 1, outcome.out
    assert "splits.train.shards.000000.bytes" in outcome.err
    assert files_of(cache_copy) == before
    again = beamclip("cache", "repair", cache_copy, "--shards", shards_dir, "--device", "cpu")
    assert again.code == 0, again.err
    assert check_law(cache_copy, exit_code=0).arrays == check_law(sealed_cache).arrays
