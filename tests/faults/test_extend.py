"""A cache that grows: nothing published is touched, whatever stops the growing."""

import json
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.cache import layout
from pipeline.cache.reader import TargetCache, read_manifest
from pipeline.cluster import Place
from pipeline.embed import CacheReport, build_cache
from pipeline.errors import CacheError, CacheMismatchError, LossesError
from pipeline.manifest import agree
from pipeline.recipe import load_recipe
from pipeline.shards import find_shards
from tests.faults.law import check_law
from tests.faults.test_crash import run_stage_one
from tests.inputs import build
from tests.trees import tree_digests, tree_stamps


def rerun(cache: Path, shards: Path, recipe: Path, *overrides: str) -> CacheReport:
    loaded = load_recipe(str(recipe), overrides)
    spec = loaded.cache_options()
    return build_cache(
        cache, find_shards([str(shards)]), spec, recipe={}, place=Place(device="cpu")
    )


def ranges(cache: Path, generation: int | None = None) -> object:
    return read_manifest(cache, generation)["splits"]["train"]["views"]["mild"]


@pytest.fixture
def one_more(tmp_path: Path, shards_dir: Path, more_shards: Path) -> Path:
    """The shards and one more train shard."""
    folder = Path(shutil.copytree(shards_dir, tmp_path / "one-more"))
    shutil.copy2(more_shards / "train-00000.tar", folder)
    return folder


# --- what growing is ------------------------------------------------------------------------------


def test_more_is_refused_without_extend_with_a_diff_and_the_way(
    cache_copy: Path, more_shards: Path, recipe_file: Path
) -> None:
    before = tree_stamps(cache_copy)
    with pytest.raises(CacheMismatchError, match="Run again with --extend to add") as caught:
        build(cache_copy, more_shards, recipe_file, "views=3")
    assert caught.value.differences == [
        ("splits.train.shards.00000", "(absent)", "present"),
        ("splits.train.views.mild", 2, 3),
        ("splits.val.shards.000000", "(absent)", "present"),
        ("splits.val.views.eval", "(absent)", 1),
    ]
    assert tree_stamps(cache_copy) == before


def test_growing_touches_nothing_that_was_there(
    cache_copy: Path, more_shards: Path, recipe_file: Path
) -> None:
    before = tree_stamps(cache_copy)
    build(cache_copy, more_shards, recipe_file, "views=3", extend=True)
    after = tree_stamps(cache_copy)
    assert {name: after[name] for name in before} == before
    added = {name.split("/")[1] for name in after.keys() - before.keys()}
    assert added == {
        "000001.json",
        "000001",
        *("train-00000.eval.v0-0", "train-00000.mild.v0-1", "train-00000.mild.v2-2"),
        *("train-000000.mild.v2-2", "train-000001.mild.v2-2", "val-000000.eval.v0-0"),
    }


def test_the_former_generation_reads_as_before_and_the_next_holds_all(
    sealed_cache: Path, grown_cache: Path
) -> None:
    alone, former = TargetCache.open(sealed_cache), TargetCache.open(grown_cache, generation=0)
    assert (len(former), former.num_views, former.digest) == (24, 2, alone.digest)
    np.testing.assert_array_equal(former.view(1), alone.view(1))
    grown = TargetCache.open(grown_cache)
    assert (len(grown), grown.num_views) == (30, 4)
    assert [shard.name for shard in grown.shards] == ["00000", "000000", "000001"]
    np.testing.assert_array_equal(grown.view(1)[6:], alone.view(1))
    assert np.isfinite(grown.view(3)).all()
    assert len(TargetCache.open(grown_cache, "val")) == 5
    with pytest.raises(CacheError, match="has no split 'val'"):
        TargetCache.open(grown_cache, "val", generation=0)


def test_a_cache_that_grew_by_shards_is_the_one_made_of_all_at_once(
    cache_copy: Path, more_shards: Path, recipe_file: Path, tmp_path: Path
) -> None:
    build(cache_copy, more_shards, recipe_file, extend=True)
    whole = build(tmp_path / "whole", more_shards, recipe_file)
    assert tree_digests(cache_copy, "units") == tree_digests(whole, "units")
    columns = (tree_digests(p, ".") for p in (cache_copy / "index/000001", whole / "index/000000"))
    one, other = ({n: d for n, d in found.items() if n.endswith(".npy")} for found in columns)
    assert one == other != {}


def test_views_that_were_added_are_the_scheduled_ones(
    grown_cache: Path, more_shards: Path, recipe_file: Path, tmp_path: Path
) -> None:
    """Targets may differ in last bits: another range of views fills other batches."""
    whole = TargetCache.open(build(tmp_path / "whole", more_shards, recipe_file, "views=4"))
    grown, rows = TargetCache.open(grown_cache), np.arange(30)
    for view in range(4):
        np.testing.assert_array_equal(grown.view_params(rows, view), whole.view_params(rows, view))
        cosine = (grown.targets(rows, view) * whole.targets(rows, view)).sum(axis=1)
        assert cosine.min() > 1 - 1e-6


def test_growing_again_and_again_keeps_every_generation(
    cache_copy: Path, shards_dir: Path, recipe_file: Path
) -> None:
    digests = [TargetCache.open(cache_copy).digest]
    for views in (3, 5):
        build(cache_copy, shards_dir, recipe_file, f"views={views}", extend=True)
        digests.append(TargetCache.open(cache_copy).digest)
    assert ranges(cache_copy) == [[0, 1], [2, 2], [3, 4]]
    opened = [TargetCache.open(cache_copy, generation=g) for g in range(3)]
    assert [cache.digest for cache in opened] == digests
    assert [cache.num_views for cache in opened] == [2, 3, 5]


def test_extend_on_a_complete_or_a_new_cache_changes_nothing(
    grown_copy: Path, more_shards: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    before = tree_stamps(grown_copy)
    build(grown_copy, more_shards, recipe_file, "views=4", extend=True)
    assert tree_stamps(grown_copy) == before
    build(tmp_path / "new", shards_dir, recipe_file, extend=True)
    assert layout.generations(tmp_path / "new") == [0]


def test_the_command_of_a_former_generation_is_content_with_it(
    grown_copy: Path, shards_dir: Path, recipe_file: Path
) -> None:
    before = tree_stamps(grown_copy)
    report = rerun(grown_copy, shards_dir, recipe_file)
    assert (report.made, report.units) == (0, 5)
    assert (report.generation, report.newest_generation) == (0, 1)
    assert "the cache has grown to generation 1" in report.text()
    assert tree_stamps(grown_copy) == before


@pytest.mark.parametrize("extend", [False, True])
@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (("views=1",), "splits.train.views.mild: cache has 2, asked for 1"),
        (("views=3", "schedule.flip=0.25"), "schedules.mild.flip: cache has 0.5, asked for 0.25"),
        (("views=3", "teacher.batch_size=8"), "batch.size: cache has 16, asked for 8"),
        (("views=3", "schedule.name=other"), "schedules.other.flip: cache has '(absent)'"),
    ],
)
def test_less_or_other_is_refused_with_and_without_extend(
    cache_copy: Path,
    shards_dir: Path,
    recipe_file: Path,
    overrides: tuple[str, ...],
    field: str,
    extend: bool,
) -> None:
    before = tree_stamps(cache_copy)
    with pytest.raises(CacheMismatchError, match="made from something else") as caught:
        build(cache_copy, shards_dir, recipe_file, *overrides, extend=extend)
    assert field in str(caught.value)
    assert tree_stamps(cache_copy) == before


def test_a_removed_shard_is_refused_though_another_is_added(
    cache_copy: Path, one_more: Path, recipe_file: Path
) -> None:
    before = tree_stamps(cache_copy)
    (one_more / "train-000001.tar").unlink()
    with pytest.raises(CacheMismatchError, match="000001: cache has 'present', asked for"):
        build(cache_copy, one_more, recipe_file, extend=True)
    assert tree_stamps(cache_copy) == before


def test_an_edited_shard_is_refused_before_a_generation_is_written(
    cache_copy: Path, one_more: Path, recipe_file: Path
) -> None:
    before = tree_stamps(cache_copy)
    path = one_more / "train-000001.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    with pytest.raises(CacheMismatchError, match=r"train\.shards\.000001\.sha256"):
        build(cache_copy, one_more, recipe_file, extend=True)
    assert tree_stamps(cache_copy) == before


# --- how views are cut into units -----------------------------------------------------------------


def test_a_bound_on_views_per_unit_cuts_units_and_changes_no_view(
    tmp_path: Path, shards_dir: Path, recipe_file: Path
) -> None:
    cut = build(tmp_path / "cut", shards_dir, recipe_file, "views=5", views_per_unit=2)
    whole = build(tmp_path / "whole", shards_dir, recipe_file, "views=5")
    assert ranges(cut) == [[0, 1], [2, 3], [4, 4]]
    one, other, rows = TargetCache.open(cut), TargetCache.open(whole), np.arange(24)
    for view in range(5):
        np.testing.assert_array_equal(one.view_params(rows, view), other.view_params(rows, view))
        cosine = (one.targets(rows, view) * other.targets(rows, view)).sum(axis=1)
        assert cosine.min() > 1 - 1e-6


def test_the_bound_is_no_matter_of_the_fingerprint(
    cache_copy: Path, shards_dir: Path, recipe_file: Path
) -> None:
    before = tree_stamps(cache_copy)
    build(cache_copy, shards_dir, recipe_file, views_per_unit=1)
    assert tree_stamps(cache_copy) == before
    build(cache_copy, shards_dir, recipe_file, "views=7", views_per_unit=3, extend=True)
    assert ranges(cache_copy) == [[0, 1], [2, 2], [3, 5], [6, 6]]


# --- what may stop it -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        "after-manifest",
        pytest.param("before-attributes:1", marks=pytest.mark.slow),
        pytest.param("after-rename:3", marks=pytest.mark.slow),
        pytest.param("before-rename:7", marks=pytest.mark.slow),  # the seal, not published
    ],
)
def test_growing_goes_on_after_kill_9(
    cache_copy: Path, more_shards: Path, recipe_file: Path, grown_cache: Path, fault: str
) -> None:
    before = tree_stamps(cache_copy)
    command = (cache_copy, more_shards, recipe_file, "--views", "4")
    killed = run_stage_one(*command, "--extend", fault=fault)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert layout.generations(cache_copy) == [0, 1]
    with pytest.raises(CacheError, match=r"not sealed.*generation 0 is sealed"):
        TargetCache.open(cache_copy)
    assert len(TargetCache.open(cache_copy, generation=0)) == 24
    assert not check_law(cache_copy, tars=more_shards.glob("*.tar")).whole
    again = run_stage_one(*command)  # the generation is planned: it needs no --extend
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["generation"] == 1
    after = tree_stamps(cache_copy)
    assert {name: after[name] for name in before} == before
    law = check_law(cache_copy, exit_code=0, tars=more_shards.glob("*.tar"))
    assert law.arrays == check_law(grown_cache).arrays
    assert TargetCache.open(cache_copy).digest == TargetCache.open(grown_cache).digest


def test_the_former_command_works_while_the_next_generation_is_unfinished(
    grown_copy: Path, shards_dir: Path, recipe_file: Path
) -> None:
    shutil.rmtree(grown_copy / "index" / "000001")
    shutil.rmtree(grown_copy / "units" / "train-00000.mild.v2-3")
    report = rerun(grown_copy, shards_dir, recipe_file)
    assert (report.made, report.generation) == (0, 0)
    assert not layout.is_sealed(grown_copy, 1)


def test_a_cache_that_was_never_finished_may_grow(
    cache_copy: Path, one_more: Path, recipe_file: Path
) -> None:
    shutil.rmtree(cache_copy / "index")
    shutil.rmtree(cache_copy / "units" / "train-000001.mild.v0-1")
    build(cache_copy, one_more, recipe_file, extend=True)
    assert [len(TargetCache.open(cache_copy, generation=g)) for g in (0, 1)] == [24, 30]
    check_law(cache_copy, exit_code=0, tars=one_more.glob("*.tar"))


@pytest.mark.parametrize("former", [True, False])
def test_a_lost_unit_of_both_generations_is_made_again_by_either_command(
    grown_copy: Path,
    shards_dir: Path,
    more_shards: Path,
    recipe_file: Path,
    former: bool,
) -> None:
    before = tree_digests(grown_copy, "units", "index")
    shutil.rmtree(grown_copy / "units" / "train-000001.mild.v0-1")
    if former:
        build(grown_copy, shards_dir, recipe_file)
    else:
        build(grown_copy, more_shards, recipe_file, "views=4")
    assert tree_digests(grown_copy, "units", "index") == before
    check_law(grown_copy, exit_code=0, tars=more_shards.glob("*.tar"))


def test_no_generation_with_a_lost_unit_stays_sealed(
    grown_copy: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
) -> None:
    """The lost unit cannot be made: its shard is cut."""
    shutil.rmtree(grown_copy / "units" / "test-000000.eval.v0-0")
    shards = Path(shutil.copytree(shards_dir, tmp_path / "cut"))
    path = shards / "test-000000.tar"
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(LossesError, match="1 of 5 units failed"):
        build(grown_copy, shards, recipe_file)
    law = check_law(grown_copy, exit_code=3, tars=shards_dir.glob("*.tar"))
    assert law.missing == {"test-000000.eval.v0-0"}
    for generation in (0, 1):
        with pytest.raises(CacheError, match="not sealed"):
            TargetCache.open(grown_copy, generation=generation)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "other", "version": 1}'])
def test_a_damaged_next_manifest_is_an_error_and_the_former_reads(
    grown_copy: Path, more_shards: Path, recipe_file: Path, content: str
) -> None:
    layout.manifest_path(grown_copy, 1).write_text(content, encoding="utf-8")
    with pytest.raises(CacheError, match=r"000001\.json"):
        TargetCache.open(grown_copy)
    with pytest.raises(CacheError, match=r"000001\.json"):
        build(grown_copy, more_shards, recipe_file, "views=5", extend=True)
    assert layout.generations(grown_copy) == [0, 1]
    assert len(TargetCache.open(grown_copy, generation=0)) == 24


def test_a_manifest_that_was_being_written_is_ignored(
    cache_copy: Path, shards_dir: Path, recipe_file: Path
) -> None:
    (cache_copy / "manifest" / ".000001.json.0123.tmp").write_text("{", encoding="utf-8")
    build(cache_copy, shards_dir, recipe_file, "views=3", extend=True)
    assert TargetCache.open(cache_copy).num_views == 3


def test_a_generation_that_is_not_there_is_named(grown_cache: Path) -> None:
    with pytest.raises(CacheError, match="has no generation 7; its newest is 1"):
        TargetCache.open(grown_cache, generation=7)


@pytest.mark.parametrize("views", [(3, 3), (3, 4)], ids=["alike", "one-more"])
def test_of_two_that_grow_a_cache_at_once_one_generation_each_or_one_for_both(
    sealed_cache: Path, shards_dir: Path, tmp_path: Path, views: tuple[int, int]
) -> None:
    """Without the lock: only exclusive creation decides, over many rounds."""
    shards = find_shards([str(shards_dir)])
    old = read_manifest(sealed_cache)
    for attempt in range(30):
        cache = tmp_path / f"{attempt}"
        shutil.copytree(sealed_cache / "manifest", cache / "manifest")
        barrier = threading.Barrier(2)

        def grow(asked: int, cache: Path = cache, barrier: threading.Barrier = barrier) -> object:
            train = {
                **old["splits"]["train"],
                "views": {"eval": [[0, 0]], "mild": [[0, asked - 1]]},
            }
            plan = {**old, "splits": {**old["splits"], "train": train}}
            barrier.wait()
            try:
                return agree(cache, plan, shards, extend=True).manifest
            except CacheMismatchError as error:
                return error

        with ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(grow, views))
        written = [read_manifest(cache, number) for number in layout.generations(cache)]
        assert [manifest["generation"] for manifest in written] == list(range(len(written)))
        if views[0] == views[1]:
            assert len(written) == 2
            assert outcomes == [written[1], written[1]]
        elif isinstance(outcomes[0], CacheMismatchError):  # the larger was first: 3 views are less
            assert ranges(cache) == [[0, 1], [2, 3]]
            assert outcomes[1] == written[-1]
        else:
            assert ranges(cache) == [[0, 1], [2, 2], [3, 3]]
            assert outcomes == written[1:]
