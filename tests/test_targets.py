"""What a cache says of rows is the same whole in memory and unit by unit, of one teacher or two."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.cache.reader import TargetCache
from pipeline.errors import CacheMismatchError
from pipeline.targets import OtherTeacher, UnitTargets, all_valid
from tests.inputs import build, make_teacher

ROWS = np.array([3, 20, 0, 17, 13, 14, 23, 3])


@pytest.fixture(scope="session")
def other_cache(
    tmp_path_factory: pytest.TempPathFactory, shards_dir: Path, recipe_file: Path
) -> Path:
    """The sealed cache's shards under another teacher."""
    folder = tmp_path_factory.mktemp("other")
    teacher = make_teacher(folder / "teacher", seed=7)
    return build(folder / "cache", shards_dir, recipe_file, f"teacher.model=local-dir:{teacher}")


class TestUnitByUnit:
    @pytest.mark.parametrize("kept", [1, 2, 9])
    def test_says_what_the_memory_map_says(self, sealed_cache: Path, kept: int) -> None:
        cache = TargetCache.open(sealed_cache)
        units = UnitTargets(TargetCache.open(sealed_cache), kept=kept)
        for view in (0, 1, 0):
            assert np.array_equal(units.targets(ROWS, view), cache.targets(ROWS, view))
            assert np.array_equal(units.view_params(ROWS, view), cache.view_params(ROWS, view))

    def test_serves_caches_whose_views_lie_in_several_units(self, grown_cache: Path) -> None:
        cache = TargetCache.open(grown_cache)
        units = UnitTargets(TargetCache.open(grown_cache), kept=2)
        rows = np.arange(len(cache))[::-1]
        for view in range(4):
            assert np.array_equal(units.targets(rows, view), cache.targets(rows, view))

    def test_reads_a_shard_of_a_view_once_while_it_is_kept(
        self, sealed_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[tuple[str, int, int]] = []
        real = TargetCache.of_shard

        def counted(self: TargetCache, array: str, shard: int, view: int) -> np.ndarray:
            read.append((array, shard, view))
            return real(self, array, shard, view)

        monkeypatch.setattr(TargetCache, "of_shard", counted)
        units = UnitTargets(TargetCache.open(sealed_cache), kept=2)
        for rows in (np.array([0, 1]), np.array([13, 14]), np.array([2, 23])):
            units.targets(rows, 0)
        assert sorted(read) == [("targets", 0, 0), ("targets", 1, 0)]


class TestOtherTeacher:
    def test_is_joined_by_shard_and_ordinal(self, sealed_cache: Path, other_cache: Path) -> None:
        cache, theirs = TargetCache.open(sealed_cache), TargetCache.open(other_cache)
        other = OtherTeacher(theirs, cache)
        assert np.array_equal(other.targets(ROWS, 1), theirs.targets(ROWS, 1))
        assert all_valid(cache, [other]).tolist() == list(range(24))

    def test_may_have_its_rows_in_another_order(
        self, sealed_cache: Path, grown_cache: Path
    ) -> None:
        """The grown cache has a shard that stands before the others."""
        cache, grown = TargetCache.open(sealed_cache), TargetCache.open(grown_cache)
        other = OtherTeacher(grown, cache)
        assert not np.array_equal(grown.targets(ROWS, 0), cache.targets(ROWS, 0))
        assert np.array_equal(other.targets(ROWS, 0), cache.targets(ROWS, 0))

    def test_that_lacks_a_shard_or_a_view_is_refused_with_each_difference(
        self, sealed_cache: Path, grown_cache: Path
    ) -> None:
        with pytest.raises(CacheMismatchError) as caught:
            OtherTeacher(TargetCache.open(sealed_cache), TargetCache.open(grown_cache))
        fields = {field: (old, new) for field, old, new in caught.value.differences}
        assert fields["views"] == (4, 2)
        assert fields["train-00000 sha256"][1] == "(absent)"

    def test_of_another_schedule_is_refused(
        self, sealed_cache: Path, shards_dir: Path, recipe_file: Path, tmp_path: Path
    ) -> None:
        path = build(tmp_path / "cache", shards_dir, recipe_file, "schedule.seed=5")
        with pytest.raises(CacheMismatchError) as caught:
            OtherTeacher(TargetCache.open(path), TargetCache.open(sealed_cache))
        assert ("schedule.seed", 0, 5) in caught.value.differences
