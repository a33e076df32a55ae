"""Verifying names everything that is wrong, and never falls over what it finds."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.audit.findings import Problem
from pipeline.audit.verify import verify_cache
from pipeline.cache import layout, writer
from pipeline.errors import CacheError
from tests.audit.damage import DAMAGES, chunk, cut, flip, swap
from tests.inputs import build, labelled_samples
from tests.trees import tree_digests

MILD, EVAL, TEST = "train-000000.mild.v0-1", "train-000001.eval.v0-0", "test-000000.eval.v0-0"


def problems(cache: Path, *, full: bool = False) -> list[Problem]:
    return verify_cache(cache, full=full).problems


def places(cache: Path, *, full: bool = False) -> set[tuple[str, str | None, int | None]]:
    return {(p.place, p.array, p.view) for p in problems(cache, full=full)}


@pytest.mark.parametrize("full", [False, True])
def test_a_clean_cache_has_no_problem_and_is_not_changed(cache_copy: Path, full: bool) -> None:
    before = tree_digests(cache_copy, ".")
    verdict = verify_cache(cache_copy, full=full)
    assert (verdict.problems, verdict.foreign) == ([], [])
    assert (verdict.generation, verdict.sealed, verdict.units) == (0, True, 5)
    assert "nothing wrong" in verdict.text()
    assert tree_digests(cache_copy, ".") == before


def test_skipped_samples_and_empty_shards_are_no_problem(tmp_path: Path, recipe_file: Path) -> None:
    from pipeline.shards import write_shards

    pairs = labelled_samples(20)
    pairs[7] = ("00007", {"png": b"<html>", "cls": b"1"})
    write_shards(pairs, tmp_path / "shards", "train", per_shard=20)
    (tmp_path / "shards" / "train-000001.tar").write_bytes(bytes(10240))
    cache = build(tmp_path / "cache", tmp_path / "shards", recipe_file)
    assert problems(cache, full=True) == []


@pytest.mark.parametrize("array", layout.UNIT_ARRAYS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_chunk_is_found_by_unit_array_and_view(
    cache_copy: Path, damage: str, array: str
) -> None:
    by_view = layout.UNIT_ARRAYS[array].chunked_by_view
    DAMAGES[damage](chunk(cache_copy, MILD, array, 1 if by_view else None))
    assert places(cache_copy, full=True) == {(f"units/{MILD}", array, 1 if by_view else None)}


@pytest.mark.parametrize("damage", ["deleted", "empty"])
def test_the_fast_way_misses_no_lost_chunk_and_no_small_array(
    cache_copy: Path, damage: str
) -> None:
    DAMAGES[damage](chunk(cache_copy, MILD, "targets", 0))
    flip(chunk(cache_copy, TEST, "valid"))
    assert places(cache_copy) == {(f"units/{MILD}", "targets", 0), (f"units/{TEST}", "valid", None)}


def test_all_problems_are_named_not_only_the_first(cache_copy: Path) -> None:
    flip(chunk(cache_copy, MILD, "targets", 0))
    cut(chunk(cache_copy, MILD, "params", 1))
    flip(chunk(cache_copy, EVAL, "keys"))
    shutil.rmtree(cache_copy / "units" / TEST)
    (cache_copy / "index" / "000000" / "train.label.npy").unlink()
    flip(next((cache_copy / "anchors" / "shapes-plain" / "embeddings" / "c").rglob("0")) / "0")
    assert places(cache_copy, full=True) == {
        (f"units/{MILD}", "targets", 0),
        (f"units/{MILD}", "params", 1),
        (f"units/{EVAL}", "keys", None),
        (f"units/{TEST}", None, None),
        ("index/000000/train.label.npy", None, None),
        ("anchors/shapes-plain", "embeddings", None),
    }


def test_swapped_chunks_are_found_in_both_views(cache_copy: Path) -> None:
    swap(chunk(cache_copy, MILD, "targets", 0), chunk(cache_copy, MILD, "targets", 1))
    found = problems(cache_copy, full=True)
    assert [(p.array, p.view) for p in found] == [("targets", 0), ("targets", 1)]
    assert all("does not match its digest" in p.what for p in found)


def test_a_whole_unit_of_another_run_is_found(
    cache_copy: Path, tmp_path: Path, shards_dir: Path, recipe_file: Path
) -> None:
    other = build(tmp_path / "other", shards_dir, recipe_file, "schedule.seed=1")
    shutil.rmtree(cache_copy / "units" / MILD)
    shutil.copytree(other / "units" / MILD, cache_copy / "units" / MILD)
    (found,) = problems(cache_copy)
    assert found.place == f"units/{MILD}"
    assert "made from something else" in found.what


def test_a_unit_of_another_content_of_its_shard_is_found(
    cache_copy: Path, tmp_path: Path, recipe_file: Path
) -> None:
    from pipeline.shards import write_shards

    write_shards(labelled_samples(24, seed=9), tmp_path / "shards", "train", per_shard=14)
    write_shards(labelled_samples(12, seed=2), tmp_path / "shards", "test", per_shard=14)
    other = build(tmp_path / "other", tmp_path / "shards", recipe_file)
    shutil.rmtree(cache_copy / "units" / MILD)
    shutil.copytree(other / "units" / MILD, cache_copy / "units" / MILD)
    found = [p.what for p in problems(cache_copy) if p.place == f"units/{MILD}"]
    assert "disagrees with train-000000.eval.v0-0 on digests, samples, shard" in found
    assert "is not the unit that was sealed" in found


GARBAGE = [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"attributes": {}}']


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_in_any_metadata_is_a_finding_there(cache_copy: Path, garbage: bytes) -> None:
    files = {
        f"units/{MILD}": f"units/{MILD}/zarr.json",
        f"units/{EVAL}": f"units/{EVAL}/targets/zarr.json",
        "anchors/shapes-plain": "anchors/shapes-plain/zarr.json",
        "units/zarr.json": "units/zarr.json",
        "index/000000/seal.json": "index/000000/seal.json",
    }
    for file in files.values():
        (cache_copy / file).write_bytes(garbage)
    assert {place for place, _, _ in places(cache_copy)} == set(files)


@pytest.mark.parametrize("garbage", [*GARBAGE, b'{"format": "beamclip-cache", "version": 2}'])
def test_a_damaged_manifest_is_the_one_finding(cache_copy: Path, garbage: bytes) -> None:
    layout.manifest_path(cache_copy, 0).write_bytes(garbage)
    verdict = verify_cache(cache_copy, full=True)
    assert [p.place for p in verdict.problems] == ["manifest/000000.json"]
    assert verdict.generation is None


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_an_edited_manifest_is_not_the_one_that_was_sealed(cache_copy: Path) -> None:
    edit(layout.manifest_path(cache_copy, 0), '"beamclip": "0', '"beamclip": "9')
    (found,) = problems(cache_copy)
    assert found.text() == "manifest/000000.json: is not the manifest that was sealed"


def test_a_lost_older_manifest_is_found(cache_copy: Path) -> None:
    path = layout.manifest_path(cache_copy, 0)
    manifest = json.loads(path.read_text(encoding="utf-8"))
    writer.create_manifest(cache_copy, {**manifest, "generation": 1})
    path.unlink()
    assert {place for place, _, _ in places(cache_copy)} == {
        "manifest/000000.json",
        "index/000001",
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"shape": [\n    14', '"shape": [\n    99999999999'),
        ('"chunk_shape": [\n        14', '"chunk_shape": [\n        15'),
        ('"data_type": "float16"', '"data_type": "float32"'),
        ('"node_type": "array"', '"node_type": "group"'),
    ],
)
def test_metadata_that_asks_for_other_shapes_or_types_is_not_believed(
    cache_copy: Path, old: str, new: str
) -> None:
    file = cache_copy / "units" / MILD / "targets" / "zarr.json"
    text = json.dumps(json.loads(file.read_text(encoding="utf-8")), indent=2)
    file.write_text(text, encoding="utf-8")
    squeezed = " ".join(text.split())
    assert " ".join(old.split()) in squeezed
    file.write_text(squeezed.replace(" ".join(old.split()), " ".join(new.split()), 1))
    found = places(cache_copy, full=True)
    assert found
    assert {(place, array) for place, array, _ in found} == {(f"units/{MILD}", "targets")}


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        (("counts", "embedded"), 13, "counts do not add up"),
        (("counts", "skipped"), "none", "attributes are damaged"),
        (("counts", "seen"), 10**12, "attributes count 1000000000000 samples, the seal 14"),
        (("shard",), None, "attributes are incomplete"),
        (
            ("digests",),
            ["targets", "norms", "params", "valid", "keys", "digests", "samples"],
            "damaged",
        ),
        (("unit",), EVAL, "incomplete, or another unit's"),
        (
            ("skips",),
            [{"ordinal": 3, "key": "x", "reason": "undecodable", "detail": ""}],
            "skips are not the rows that `valid` calls invalid",
        ),
    ],
)
def test_attributes_that_do_not_add_up_are_found(
    cache_copy: Path, field: tuple[str, ...], value: object, what: str
) -> None:
    file = cache_copy / "units" / MILD / "zarr.json"
    metadata = json.loads(file.read_text(encoding="utf-8"))
    inner = metadata["attributes"]
    for name in field[:-1]:
        inner = inner[name]
    inner[field[-1]] = value
    file.write_text(json.dumps(metadata), encoding="utf-8")
    found = problems(cache_copy)
    assert any(p.place == f"units/{MILD}" and what in p.what for p in found), found


def test_vectors_that_are_none_are_found_even_under_a_right_digest(cache_copy: Path) -> None:
    """As if a unit had been published that stage one would have refused."""
    import zarr

    folder = cache_copy / "units" / MILD
    group = zarr.open_group(folder, mode="r+")
    group["targets"][3, 1] = 0.5
    arrays = {name: np.asarray(group[name][...]) for name in layout.UNIT_ARRAYS}
    group.attrs["digests"] = layout.content_digests(arrays)
    found = [p.text() for p in problems(cache_copy, full=True)]
    assert any("targets, view 1: 1 valid targets are no normalised" in text for text in found)


@pytest.mark.parametrize(
    ("edited", "what"),
    [
        (("splits", "train", "rows", 23), "rows of split train do not add up"),
        (("units", MILD, "0" * 64), "is not the unit that was sealed"),
        (("generation", 7), "is of generation 7"),
        (("columns", "train.label", "0" * 64), "is not as it was sealed"),
    ],
)
def test_a_seal_that_says_other_things_is_found(
    cache_copy: Path, edited: tuple[object, ...], what: str
) -> None:
    file = cache_copy / "index" / "000000" / "seal.json"
    seal = json.loads(file.read_text(encoding="utf-8"))
    inner = seal
    for name in edited[:-2]:
        inner = inner[name]
    inner[edited[-2]] = edited[-1]
    file.write_text(json.dumps(seal), encoding="utf-8")
    assert what in " ".join(p.what for p in problems(cache_copy))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_column_of_the_index_is_found(cache_copy: Path, damage: str) -> None:
    DAMAGES[damage](cache_copy / "index" / "000000" / "test.offset.npy")
    assert places(cache_copy) == {("index/000000/test.offset.npy", None, None)}


def test_an_unsealed_cache_says_so_and_is_verified_all_the_same(cache_copy: Path) -> None:
    writer.unseal(cache_copy, 0)
    shutil.rmtree(cache_copy / "units" / TEST)
    verdict = verify_cache(cache_copy)
    assert not verdict.sealed
    assert {(p.place, p.what.split(":")[0]) for p in verdict.problems} == {
        ("index/000000", "is missing"),
        (f"units/{TEST}", "is missing"),
    }


def test_strangers_are_named_and_are_no_problem(cache_copy: Path) -> None:
    (cache_copy / ".tmp" / "unit.abc").mkdir(parents=True)
    (cache_copy / "units" / "train-000009.old.v0-1").mkdir()
    (cache_copy / "notes.txt").write_text("mine")
    chunk(cache_copy, MILD, "targets", 0).with_suffix(".1f.partial").write_bytes(b"x")
    verdict = verify_cache(cache_copy, full=True)
    assert verdict.problems == []
    assert verdict.foreign == ["notes.txt", "units/train-000009.old.v0-1"]


def test_a_prompt_set_that_the_recipe_names_is_missed(cache_copy: Path) -> None:
    shutil.rmtree(cache_copy / "anchors" / "shapes-context")
    assert places(cache_copy) == {("anchors/*-context", None, None)}


def test_a_folder_that_is_no_cache_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no cache in"):
        verify_cache(tmp_path)


def test_many_problems_are_cut_short_in_words_only(cache_copy: Path) -> None:
    verdict = verify_cache(cache_copy)
    verdict.problems += [Problem(f"units/{i}", "is missing") for i in range(60)]
    assert "and 10 more: --json lists them all" in verdict.text()
    assert len(verdict.as_mapping()["problems"]) == 60


@pytest.mark.slow
def test_no_flipped_bit_of_any_file_makes_it_fall_over(cache_copy: Path) -> None:
    """Every file in turn, at three places; what lies in a chunk must be found."""
    generator = np.random.default_rng(0)
    for file in sorted(path for path in cache_copy.rglob("*") if path.is_file()):
        whole = file.read_bytes()
        for place in generator.integers(0, max(1, len(whole)), 3) if whole else []:
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(generator.integers(8))
            file.write_bytes(damaged)
            found = problems(cache_copy, full=True)
            assert found or "/c/" not in str(file), file
        file.write_bytes(whole)
    assert problems(cache_copy, full=True) == []
