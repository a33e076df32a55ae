"""Captions are verified, described, compared and mended with the rest of a cache."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.audit.diff import diff_caches
from pipeline.audit.info import cache_info
from pipeline.audit.repair import RepairReport, repair_cache
from pipeline.audit.verify import verify_cache
from pipeline.cache import layout
from pipeline.caption_sets import add_captions
from pipeline.errors import CacheMismatchError, LossesError
from pipeline.frozen.texts import TextFeatureOptions
from pipeline.shards import find_shards, write_shards
from tests.audit.damage import DAMAGES, chunk, flip
from tests.inputs import build, captioned_samples
from tests.shared.encoders import make_text_encoder
from tests.trees import cache_digests, tree_digests

TEST = "captions/test"
Attributes = dict[str, Any]


def found(cache: Path) -> list[tuple[str, str | None]]:
    return [(p.place, p.array) for p in verify_cache(cache, full=True).problems]


def repair(cache: Path, shards: Path) -> RepairReport:
    return repair_cache(cache, find_shards([str(shards)]), device="cpu")


def chunk_of(cache: Path, array: str) -> Path:
    files = (cache / TEST / array / "c").rglob("*")
    return next(file for file in files if file.is_file())


def edit(cache: Path, change: Callable[[Attributes], object]) -> None:
    file = cache / TEST / "zarr.json"
    metadata = json.loads(file.read_text(encoding="utf-8"))
    change(metadata["attributes"])
    file.write_text(json.dumps(metadata), encoding="utf-8")


# --- verify --------------------------------------------------------------------------------------


def test_captions_that_are_whole_are_no_problem(captioned_cache: Path) -> None:
    before = tree_digests(captioned_cache, ".")
    for full in (False, True):
        verdict = verify_cache(captioned_cache, full=full)
        assert (verdict.problems, verdict.foreign) == ([], [])
    assert tree_digests(captioned_cache, ".") == before


@pytest.mark.parametrize("array", layout.CAPTION_ARRAYS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_chunk_is_found(captioned_copy: Path, array: str, damage: str) -> None:
    DAMAGES[damage](chunk_of(captioned_copy, array))
    assert found(captioned_copy) == [(TEST, array)]


GARBAGE = [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"attributes": {}}']


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_in_any_metadata_is_a_finding_there(captioned_copy: Path, garbage: bytes) -> None:
    for file in (f"{TEST}/zarr.json", "captions/zarr.json"):
        (captioned_copy / file).write_bytes(garbage)
    assert {place for place, _ in found(captioned_copy)} == {TEST, "captions/zarr.json"}
    assert "captions add` it again" in verify_cache(captioned_copy).text()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda a: a.update(name="other"), "holds the captions other"),
        (lambda a: a.update(teacher="0"), "embedded by another teacher"),
        (lambda a: a.update(split="tset"), "shard tset-000000, which the manifest lacks"),
        (lambda a: a["shards"][1].update(name="7"), "shard test-7, which the manifest lacks"),
        (lambda a: a["shards"][1].update(sha256="7"), "read another content of shard test-000001"),
        (lambda a: a["shards"][1].update(bytes="7"), "a number or a text is none"),
        (lambda a: a["shards"].pop(), "a caption is of no shard"),
        (lambda a: a["shards"].reverse(), "a sample that its shard does not have"),
        (lambda a: a["counts"].update(captions=7), "shape"),
        (lambda a: a["counts"].update(captioned=7), "counts do not add up"),
        (lambda a: a["counts"].update(samples=7), "counts do not add up"),
        (lambda a: a.pop("cuts"), "damaged"),
    ],
)
def test_attributes_that_do_not_add_up_are_found(
    captioned_copy: Path, change: Callable[[Attributes], object], what: str
) -> None:
    edit(captioned_copy, change)
    problems = verify_cache(captioned_copy).problems
    assert {problem.place for problem in problems} == {TEST}
    assert what in " ".join(problem.what for problem in problems)


def test_a_damaged_unit_is_no_fault_of_its_captions(captioned_copy: Path) -> None:
    (captioned_copy / "units" / "test-000001.eval.v0-0" / "zarr.json").write_text("{")
    assert found(captioned_copy) == [("units/test-000001.eval.v0-0", None)]


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_text_encoder(tmp_path_factory.mktemp("captions") / "bert")


@pytest.fixture
def embedded_copy(
    tmp_path: Path, vision_cache: Path, captioned_shards: Path, text_encoder: Path
) -> Path:
    """A copy of the cache whose teacher reads no text, its test captions embedded by an encoder."""
    cache = Path(shutil.copytree(vision_cache, tmp_path / "embedded"))
    spec = TextFeatureOptions(text=str(text_encoder), max_tokens=12)
    add_captions(cache, find_shards([str(captioned_shards)]), device="cpu", encoder=spec)
    return cache


def test_captions_that_an_encoder_embedded_are_no_problem(embedded_copy: Path) -> None:
    for full in (False, True):
        verdict = verify_cache(embedded_copy, full=full)
        assert (verdict.problems, verdict.foreign) == ([], [])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda a: a["encoder"].update(dim=32), "shape"),
        (lambda a: a["encoder"].update(dim="64"), "a number or a text is none"),
        (lambda a: a["encoder"].update(pooling=None), "a number or a text is none"),
        (lambda a: a["encoder"].pop("weights_sha256"), "damaged"),
        (lambda a: a.update(encoder=[]), "damaged"),
        (lambda a: a.pop("encoder"), "shape"),
    ],
)
def test_an_encoder_that_does_not_add_up_is_found(
    embedded_copy: Path, change: Callable[[Attributes], object], what: str
) -> None:
    edit(embedded_copy, change)
    problems = verify_cache(embedded_copy).problems
    assert {problem.place for problem in problems} == {TEST}
    assert what in " ".join(problem.what for problem in problems)


def test_an_encoder_beside_a_teacher_that_reads_text_is_found(
    captioned_copy: Path, embedded_copy: Path
) -> None:
    metadata = json.loads((embedded_copy / TEST / "zarr.json").read_text(encoding="utf-8"))
    encoder = {**metadata["attributes"]["encoder"], "dim": 16}
    edit(captioned_copy, lambda attributes: attributes.update(encoder=encoder))
    (problem,) = verify_cache(captioned_copy).problems
    assert "embedded by a text encoder, not by the teacher" in problem.what


# --- info, diff ----------------------------------------------------------------------------------


def test_info_lists_captions(captioned_copy: Path) -> None:
    info = cache_info(captioned_copy)
    assert (info.captions["test"].split, info.captions["test"].samples) == ("test", 11)
    assert "captions test: 46 captions of 11 samples of test" in info.text()
    (captioned_copy / TEST / "zarr.json").write_text("{")
    assert "captions test: its zarr.json is damaged" in cache_info(captioned_copy).text()


def test_diff_compares_captions(
    captioned_cache: Path, captioned_copy: Path, captioned_shards: Path
) -> None:
    assert diff_caches(captioned_cache, captioned_copy).equal
    add_captions(captioned_copy, find_shards([str(captioned_shards)]), split="train", device="cpu")
    apart = diff_caches(captioned_cache, captioned_copy)
    assert (apart.only_b, apart.captions) == (["captions/train"], {})
    edit(captioned_copy, lambda attributes: attributes["digests"].update(texts="0"))
    apart = diff_caches(captioned_cache, captioned_copy)
    assert apart.captions == {"test": ["digests.texts"]}
    assert "captions/test: digests.texts" in apart.text()


# --- repair --------------------------------------------------------------------------------------


@pytest.mark.parametrize("array", layout.CAPTION_ARRAYS)
def test_damaged_captions_are_embedded_anew_from_their_shards(
    captioned_copy: Path, captioned_cache: Path, captioned_shards: Path, array: str
) -> None:
    flip(chunk_of(captioned_copy, array))
    report = repair(captioned_copy, captioned_shards)
    assert (report.units, report.anchors, report.captions) == ([], [], ["test"])
    assert "made anew: captions/test" in report.text()
    assert cache_digests(captioned_copy) == cache_digests(captioned_cache)


def test_captions_and_the_units_of_their_shards_are_mended_at_once(
    captioned_copy: Path, captioned_cache: Path, captioned_shards: Path
) -> None:
    flip(chunk(captioned_copy, "test-000001.eval.v0-0", "keys"))
    (captioned_copy / "captions" / "zarr.json").write_bytes(b"")
    edit(captioned_copy, lambda attributes: attributes["counts"].update(samples=7))
    report = repair(captioned_copy, captioned_shards)
    assert (report.units, report.captions) == (["test-000001.eval.v0-0"], ["test"])
    assert cache_digests(captioned_copy) == cache_digests(captioned_cache)


def test_captions_of_a_former_generation_are_mended_as_they_were(
    captioned_copy: Path, captioned_shards: Path, recipe_file: Path, tmp_path: Path
) -> None:
    shards = Path(shutil.copytree(captioned_shards, tmp_path / "shards"))
    (path,) = write_shards(captioned_samples(4, seed=3), tmp_path / "own", "test", per_shard=4)
    path.rename(shards / "test-00000.tar")
    build(captioned_copy, shards, recipe_file, extend=True)
    before = cache_digests(captioned_copy)
    flip(chunk_of(captioned_copy, "samples"))
    assert repair(captioned_copy, shards).captions == ["test"]
    assert cache_digests(captioned_copy) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda attributes: attributes.pop("split"),
        lambda attributes: attributes["shards"][0].update(name="000001"),
        lambda attributes: attributes.update(split="tset"),
    ],
)
def test_captions_that_do_not_say_of_which_shards_they_are_stay_and_are_told(
    captioned_copy: Path, captioned_shards: Path, change: Callable[[Attributes], object]
) -> None:
    edit(captioned_copy, change)
    before = cache_digests(captioned_copy)
    with pytest.raises(LossesError, match=r"still wrong:\n  captions/test.*") as caught:
        repair(captioned_copy, captioned_shards)
    assert "captions add` it again" in str(caught.value)
    assert cache_digests(captioned_copy) == before


def test_captions_that_an_encoder_embedded_are_mended_by_it(
    embedded_copy: Path, captioned_shards: Path
) -> None:
    before = cache_digests(embedded_copy)
    flip(chunk_of(embedded_copy, "embeddings"))
    texts = (embedded_copy / "captions" / "train" / "texts" / "c").rglob("*")
    flip(next(file for file in texts if file.is_file()))  # of captions that nothing embedded
    assert repair(embedded_copy, captioned_shards).captions == ["test", "train"]
    assert cache_digests(embedded_copy) == before


def test_captions_are_not_mended_by_another_encoder(
    embedded_copy: Path, captioned_shards: Path, tmp_path: Path
) -> None:
    other = str(make_text_encoder(tmp_path / "other", seed=1))
    edit(embedded_copy, lambda attributes: attributes["encoder"].update(model=other))
    flip(chunk_of(embedded_copy, "embeddings"))
    with pytest.raises(CacheMismatchError, match=r"(?s)another by now.*weights_sha256"):
        repair(embedded_copy, captioned_shards)
