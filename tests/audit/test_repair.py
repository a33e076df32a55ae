"""Repairing makes anew what is damaged, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.audit.repair import RepairReport, repair_cache
from pipeline.audit.verify import verify_cache
from pipeline.cache import layout, writer
from pipeline.cache.reader import read_anchors
from pipeline.errors import CacheError, CacheMismatchError, LossesError, TeacherError
from pipeline.prompts import load_sets
from pipeline.shards import find_shards
from pipeline.texts import add_anchors
from tests.audit.damage import chunk, flip
from tests.inputs import make_teacher
from tests.runs import held_elsewhere
from tests.trees import cache_digests, tree_digests

MILD, EVAL, TEST = "train-000000.mild.v0-1", "train-000001.eval.v0-0", "test-000000.eval.v0-0"


def repair(cache: Path, shards: Path, **where: str) -> RepairReport:
    return repair_cache(cache, find_shards([str(shards)]), device="cpu", **where)  # type: ignore[arg-type]


def times(cache: Path) -> dict[str, int]:
    return {str(f.relative_to(cache)): f.stat().st_mtime_ns for f in cache.rglob("*")}


def test_a_whole_cache_is_not_touched_and_no_teacher_is_asked_for(
    cache_copy: Path, shards_dir: Path
) -> None:
    before = cache_digests(cache_copy), times(cache_copy / "units"), times(cache_copy / "index")
    report = repair(cache_copy, shards_dir, teacher="local-dir:/nowhere")
    assert (report.problems, report.units, report.anchors) == ([], [], [])
    assert "nothing done" in report.text()
    assert before == (
        cache_digests(cache_copy),
        times(cache_copy / "units"),
        times(cache_copy / "index"),
    )


def test_only_damaged_units_are_made_anew_and_all_is_as_before(
    cache_copy: Path, sealed_cache: Path, shards_dir: Path
) -> None:
    flip(chunk(cache_copy, MILD, "targets", 1))
    (cache_copy / "units" / EVAL / "zarr.json").write_text("{")
    shutil.rmtree(cache_copy / "units" / TEST)
    before = times(cache_copy / "units")
    report = repair(cache_copy, shards_dir)
    assert set(report.units) == {MILD, EVAL, TEST}
    assert report.changed == []
    assert cache_digests(cache_copy) == cache_digests(sealed_cache)
    after = times(cache_copy / "units")
    redone = {name.split("/")[0] for name, time in after.items() if before.get(name) != time}
    assert redone == {MILD, EVAL, TEST}
    assert not (cache_copy / ".tmp").exists()


def test_a_damaged_index_is_written_anew_from_the_units(
    cache_copy: Path, sealed_cache: Path, shards_dir: Path
) -> None:
    flip(cache_copy / "index" / "000000" / "train.offset.npy")
    before = times(cache_copy / "units")
    assert repair(cache_copy, shards_dir).units == []
    assert cache_digests(cache_copy) == cache_digests(sealed_cache)
    assert times(cache_copy / "units") == before


@pytest.mark.parametrize("array", layout.ANCHOR_ARRAYS)
def test_damaged_anchors_are_embedded_anew(
    cache_copy: Path, sealed_cache: Path, shards_dir: Path, array: str
) -> None:
    folder = cache_copy / "anchors" / "shapes-plain"
    flip(next(file for file in (folder / array / "c").rglob("*") if file.is_file()))
    assert repair(cache_copy, shards_dir).anchors == ["shapes-plain"]
    assert cache_digests(cache_copy) == cache_digests(sealed_cache)


def test_lost_anchors_come_from_the_prompt_file(
    cache_copy: Path, sealed_cache: Path, shards_dir: Path
) -> None:
    shutil.rmtree(cache_copy / "anchors" / "shapes-context")
    assert repair(cache_copy, shards_dir).anchors == ["shapes-context"]
    assert cache_digests(cache_copy) == cache_digests(sealed_cache)


def rename_set(cache: Path, old: str, new: str) -> Path:
    """Make a prompt set one that the recipe's prompt file does not have."""
    folder = Path(shutil.copytree(cache / "anchors" / old, cache / "anchors" / new))
    metadata = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
    metadata["attributes"]["name"] = new
    (folder / "zarr.json").write_text(json.dumps(metadata), encoding="utf-8")
    return folder


def test_anchors_of_no_prompt_file_are_embedded_from_their_own_texts(
    cache_copy: Path, shards_dir: Path
) -> None:
    folder = rename_set(cache_copy, "shapes-plain", "other-plain")
    before = tree_digests(folder, "embeddings", "texts")
    flip(next(file for file in (folder / "embeddings" / "c").rglob("*") if file.is_file()))
    assert repair(cache_copy, shards_dir).anchors == ["other-plain"]
    assert tree_digests(folder, "embeddings", "texts") == before


def test_anchors_of_texts_that_were_cut_are_cut_where_they_were(
    cache_copy: Path, shards_dir: Path, tmp_path: Path
) -> None:
    """The class's names, by which a cut was decided, are not on record; where it fell is."""
    far = "word " * 30
    content = {
        "dataset": "other",
        "classes": [
            {
                "name": "fig",
                "description": f"A fruit, cf. Ficus, {far}of the fig. And so on. {far}",
            },
            {"name": "A", "description": f"The letter A. {far}"},
            {"name": "great grey owl", "description": f"A bird; {'great grey owl ' * 30}"},
        ],
        "prompt_sets": {"cpa": ["A {label}: {description}"]},
    }
    (tmp_path / "other.yaml").write_text(json.dumps(content), encoding="utf-8")
    add_anchors(cache_copy, load_sets(str(tmp_path / "other.yaml")), device="cpu")
    before = tree_digests(cache_copy, "anchors/other-cpa")
    assert len(read_anchors(cache_copy, "other-cpa").cuts) == 3
    arrays = cache_copy / "anchors/other-cpa/embeddings/c"
    flip(next(file for file in arrays.rglob("*") if file.is_file()))
    assert repair(cache_copy, shards_dir).anchors == ["other-cpa"]
    assert tree_digests(cache_copy, "anchors/other-cpa") == before


def test_anchors_whose_texts_are_lost_everywhere_are_told(
    cache_copy: Path, shards_dir: Path
) -> None:
    folder = rename_set(cache_copy, "shapes-plain", "other-plain")
    flip(next(file for file in (folder / "texts" / "c").rglob("*") if file.is_file()))
    flip(chunk(cache_copy, MILD, "targets", 1))
    with pytest.raises(LossesError, match=r"still wrong:\n  anchors/other-plain, texts: "):
        repair(cache_copy, shards_dir)
    assert [p.place for p in verify_cache(cache_copy, full=True).problems] == [
        "anchors/other-plain"
    ]


@pytest.mark.parametrize("parent", ["units", "anchors"])
def test_the_group_around_units_is_mended_alone(
    cache_copy: Path, sealed_cache: Path, shards_dir: Path, parent: str
) -> None:
    (cache_copy / parent / "zarr.json").write_bytes(b"")
    report = repair(cache_copy, shards_dir)
    assert (report.units, report.anchors) == ([], [])
    assert cache_digests(cache_copy) == cache_digests(sealed_cache)


def test_an_unfinished_cache_is_finished(
    cache_copy: Path, sealed_cache: Path, shards_dir: Path
) -> None:
    writer.unseal(cache_copy, 0)
    shutil.rmtree(cache_copy / "units" / MILD)
    repair(cache_copy, shards_dir)
    assert cache_digests(cache_copy) == cache_digests(sealed_cache)


@pytest.mark.parametrize("text", ["{", "edited"])
def test_a_damaged_manifest_stops_it_before_anything_is_touched(
    cache_copy: Path, shards_dir: Path, text: str
) -> None:
    path = layout.manifest_path(cache_copy, 0)
    edited = path.read_text(encoding="utf-8").replace('"dim": 16', '"dim": 17')
    path.write_text(edited if text == "edited" else text, encoding="utf-8")
    flip(chunk(cache_copy, MILD, "targets", 1))
    before = tree_digests(cache_copy, "units", "anchors", "index", "manifest")
    with pytest.raises(CacheError, match=r"put it back from a copy"):
        repair(cache_copy, shards_dir)
    assert tree_digests(cache_copy, "units", "anchors", "index", "manifest") == before


def test_another_teacher_never_mends_a_cache(
    cache_copy: Path, shards_dir: Path, tmp_path: Path
) -> None:
    other = make_teacher(tmp_path / "other", seed=1)
    flip(chunk(cache_copy, MILD, "targets", 1))
    before = tree_digests(cache_copy, "units", "anchors", "index", "manifest")
    with pytest.raises(CacheMismatchError, match=r"teacher\.weights_sha256"):
        repair(cache_copy, shards_dir, teacher=f"local-dir:{other}")
    with pytest.raises(TeacherError, match="no teacher in"):
        repair(cache_copy, shards_dir, teacher="local-dir:/nowhere")
    assert tree_digests(cache_copy, "units", "anchors", "index", "manifest") == before


def test_a_teacher_that_moved_is_found_where_it_is_said_to_lie(
    cache_copy: Path, sealed_cache: Path, shards_dir: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(teacher_dir, tmp_path / "moved")
    flip(chunk(cache_copy, MILD, "targets", 1))
    assert repair(cache_copy, shards_dir, teacher=f"local-dir:{moved}").units == [MILD]
    assert cache_digests(cache_copy) == cache_digests(sealed_cache)


def test_an_edited_shard_never_mends_a_cache(
    cache_copy: Path, shards_dir: Path, tmp_path: Path
) -> None:
    shards = Path(shutil.copytree(shards_dir, tmp_path / "shards"))
    flip(shards / "train-000000.tar")
    flip(chunk(cache_copy, MILD, "targets", 1))
    before = tree_digests(cache_copy, "units")
    with pytest.raises(CacheMismatchError, match=r"train\.shards\.000000\.sha256"):
        repair(cache_copy, shards)
    assert tree_digests(cache_copy, "units") == before


def test_a_cache_that_is_being_written_is_left_alone(cache_copy: Path, shards_dir: Path) -> None:
    flip(chunk(cache_copy, MILD, "targets", 1))
    with (
        held_elsewhere(cache_copy / ".lock"),
        pytest.raises(CacheError, match="being written by another process"),
    ):
        repair(cache_copy, shards_dir)


def test_a_folder_that_is_no_cache_gets_no_lock(tmp_path: Path, shards_dir: Path) -> None:
    with pytest.raises(CacheError, match="no cache in"):
        repair(tmp_path / "none", shards_dir)
    assert not (tmp_path / "none").exists()
