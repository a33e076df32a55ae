"""Recomputed targets agree with stored ones, or the cache is not what it says."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipeline.audit.findings import Findings
from pipeline.audit.reembed import Reembedding, reembed
from pipeline.audit.verify import verify_cache
from pipeline.cache import layout
from pipeline.cache.reader import TargetCache
from pipeline.errors import CacheMismatchError
from pipeline.shards import find_shards, write_shards
from tests.audit.damage import chunk, flip
from tests.inputs import build, encode, labelled_samples, make_teacher, square

MILD, TEST = "train-000000.mild.v0-1", "test-000000.eval.v0-0"
NUM_TARGETS = 24 * 3 + 12  # train in eval and two views, test in eval


def run(cache: Path, shards: Path, **options: Any) -> tuple[Reembedding, Findings]:
    findings = Findings()
    settings: dict[str, Any] = {"share": 1.0, "seed": 0, "bound": 1 - 1e-4, "device": "cpu"}
    report = reembed(cache, find_shards([str(shards)]), findings, **{**settings, **options})
    return report, findings


def store(cache: Path, unit: str, name: str, place: tuple[int, ...], value: object) -> None:
    """Change an array of a unit and its digests: damage that no digest tells."""
    group = zarr.open_group(cache / "units" / unit, mode="r+")
    group[name][place] = value  # type: ignore[index]
    arrays = {array: np.asarray(group[array][...]) for array in layout.UNIT_ARRAYS}  # type: ignore[index]
    group.attrs["digests"] = layout.content_digests(arrays)


def test_all_targets_come_out_as_they_are_stored(sealed_cache: Path, shards_dir: Path) -> None:
    report, findings = run(sealed_cache, shards_dir)
    assert findings.problems == []
    assert report.targets == NUM_TARGETS
    assert report.minimum is not None
    assert 1 - 1e-6 < report.minimum <= 1 + 1e-9
    assert len(report.worst) == 5
    assert report.worst[0].cosine == report.minimum


def test_a_share_is_a_function_of_the_seed_and_touches_every_unit(
    sealed_cache: Path, shards_dir: Path
) -> None:
    small, _ = run(sealed_cache, shards_dir, share=1e-6)
    assert small.targets == 5
    assert {item.unit for item in small.worst} == {p.name for p in units(sealed_cache)}
    again, _ = run(sealed_cache, shards_dir, share=1e-6)
    other, _ = run(sealed_cache, shards_dir, share=1e-6, seed=1)
    assert again == small
    assert other.worst != small.worst
    tenth, _ = run(sealed_cache, shards_dir, share=0.1)
    assert tenth.targets == 3 + 2 + 2 + 1 + 2  # a tenth of 28, 20, 14, 10 and 12, rounded up


def units(cache: Path) -> list[Path]:
    return [path for path in (cache / "units").iterdir() if path.is_dir()]


def test_a_target_of_another_image_is_found_and_named(cache_copy: Path, shards_dir: Path) -> None:
    other = zarr.open_group(cache_copy / "units" / MILD, mode="r")["targets"][4, 1]  # type: ignore[index]
    store(cache_copy, MILD, "targets", (9, 1), other)
    report, findings = run(cache_copy, shards_dir)
    (found,) = findings.problems
    assert (found.place, found.array) == (f"units/{MILD}", "targets")
    assert "1 of 28 recomputed targets" in found.what
    assert "sample 9 (00009), view 1" in found.what
    assert (report.worst[0].ordinal, report.worst[0].view) == (9, 1)
    assert run(cache_copy, shards_dir, bound=-1.0)[1].problems == []


def test_targets_are_recomputed_by_their_stored_parameters(
    cache_copy: Path, shards_dir: Path
) -> None:
    params = zarr.open_group(cache_copy / "units" / MILD, mode="r")["params"]
    mirrored = 1 - params[2, 0, layout.PARAM_COLUMNS.index("flip")]  # type: ignore[index, operator]
    store(cache_copy, MILD, "params", (2, 0, layout.PARAM_COLUMNS.index("flip")), mirrored)
    _, findings = run(cache_copy, shards_dir)
    assert ["sample 2 (00002), view 0" in p.what for p in findings.problems] == [True]


def test_another_image_in_the_shard_is_found(
    cache_copy: Path, shards_dir: Path, tmp_path: Path
) -> None:
    shards = Path(shutil.copytree(shards_dir, tmp_path / "shards"))
    path = shards / "test-000000.tar"
    content = path.read_bytes()
    start = content.index(b"\x89PNG")
    path.write_bytes(content[: start + 60] + b"x" + content[start + 61 :])
    report, findings = run(cache_copy, shards)
    (found,) = findings.problems
    assert found.place == f"units/{TEST}"
    assert f"sample 0 (00000): {path} holds another image at its offset" in found.what
    assert report.targets == NUM_TARGETS - 1


def test_damaged_and_missing_units_do_not_stop_it(cache_copy: Path, shards_dir: Path) -> None:
    flip(chunk(cache_copy, MILD, "targets", 1))
    shutil.rmtree(cache_copy / "units" / TEST)
    report, findings = run(cache_copy, shards_dir)
    assert {(p.place, p.array, p.view) for p in findings.problems} == {
        (f"units/{MILD}", "targets", 1),
        (f"units/{TEST}", None, None),
    }
    assert report.targets == NUM_TARGETS - 14 - 12
    full = verify_cache(cache_copy, full=True).problems
    known = Findings(full)
    count = len(known.problems)
    reembed(
        cache_copy,
        find_shards([str(shards_dir)]),
        known,
        share=1.0,
        seed=0,
        bound=0.9,
        device="cpu",
    )
    assert len(known.problems) == count  # told once


def test_invalid_rows_are_left_out(tmp_path: Path, recipe_file: Path) -> None:
    pairs = labelled_samples(10)
    pairs[7] = ("00007", {"png": b"<html>", "cls": b"1"})
    pairs[3] = ("00003", {"jpg": encode(square(0, 5), "JPEG"), "cls": b"0"})
    write_shards(pairs, tmp_path / "shards", "train", per_shard=10)
    cache = build(tmp_path / "cache", tmp_path / "shards", recipe_file)
    report, findings = run(cache, tmp_path / "shards")
    assert (report.targets, findings.problems) == (9 * 3, [])


def test_a_cache_without_a_valid_target_has_no_quantiles(tmp_path: Path, recipe_file: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "train-0.tar").write_bytes(bytes(10240))
    cache = build(tmp_path / "cache", tmp_path / "shards", recipe_file)
    report, findings = run(cache, tmp_path / "shards")
    assert (report.targets, report.minimum, findings.problems) == (0, None, [])
    assert "0 targets" in report.text()


def test_another_teacher_is_refused_by_its_weights(
    sealed_cache: Path, shards_dir: Path, tmp_path: Path
) -> None:
    other = make_teacher(tmp_path / "other", seed=1)
    with pytest.raises(CacheMismatchError, match=r"weights_sha256: cache has"):
        run(sealed_cache, shards_dir, teacher=f"local-dir:{other}")


def test_a_shard_that_is_not_given_is_named(sealed_cache: Path, shards_dir: Path) -> None:
    with pytest.raises(CacheMismatchError, match=r"test-000000: .*\(not given\)"):
        run(sealed_cache, shards_dir / "train-*.tar")


def test_the_bound_stands_between_rounding_and_another_view(
    sealed_cache: Path, shards_dir: Path
) -> None:
    report, _ = run(sealed_cache, shards_dir)
    cache = TargetCache.open(sealed_cache)
    rows = np.arange(len(cache))
    other_N = (cache.targets(rows, 0).astype(float) * cache.targets(rows, 1)).sum(axis=1)
    assert report.minimum is not None
    assert 1 - report.minimum < 1e-4 / 100
    assert (1 - other_N).min() > 1e-4
