"""Plans: what a cache will cost, from given rates and from a calibration that leaves nothing."""

import json
from pathlib import Path

import pytest

from pipeline.cluster import Place
from pipeline.errors import DataError
from pipeline.plan import Rates, calibrate, given_rates, plan_cache
from pipeline.recipe import load_recipe
from pipeline.shards import find_shards
from tests.conftest import Invoke


def test_a_plan_counts_the_eval_view_too() -> None:
    (row,) = plan_cache(Rates(1000, 512, 100.0, 1100.0), [9]).rows
    assert (row.views, row.targets, row.bytes) == (9, 10_000, 11_000_000)
    assert row.teacher_hours == pytest.approx(100 / 3600)


def test_it_pays_from_the_first_epoch_that_asks_more_than_the_cache_did() -> None:
    (row,) = plan_cache(given_rates(1000, 512, 100.0), [10]).rows
    online = row.breakeven * 1000  # views that online distillation asks for by then
    assert online > row.targets
    assert online - 1000 <= row.targets


def test_a_calibration_measures_this_machine_and_leaves_nothing(
    shards_dir: Path, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spec = load_recipe(str(recipe_file)).cache_options()
    shards = find_shards([str(shards_dir)])
    rates = calibrate(shards, spec, Place(device="cpu"), seconds=0.1)
    assert not list(tmp_path.glob("tmp*"))
    assert rates.dim == 16
    assert rates.forwards_per_second is not None
    assert rates.forwards_per_second > rates.views_per_second > 0
    assert 24 <= rates.samples <= 60  # 36, reckoned from bytes; small tars are mostly padding
    assert rates.bytes_per_view > 2 * 16


def test_without_train_shards_there_is_nothing_to_calibrate_on(
    shards_dir: Path, recipe_file: Path
) -> None:
    spec = load_recipe(str(recipe_file)).cache_options()
    tests = [shard for shard in find_shards([str(shards_dir)]) if shard.split == "test"]
    with pytest.raises(DataError, match="no train shard"):
        calibrate(tests, spec, Place(device="cpu"))


def test_the_command_prints_a_row_for_each_number_of_views(beamclip: Invoke) -> None:
    given = ("--samples", "1281167", "--rate", "2500", "--views", "10,50")
    outcome = beamclip("cache", "plan", *given)
    assert outcome.code == 0, outcome.err
    assert "1,281,167 samples, D = 512, 2,500 views/s" in outcome.out
    assert len(outcome.out.strip().splitlines()) == 4
    rows = json.loads(beamclip("cache", "plan", *given, "--json").out)["rows"]
    assert [row["breakeven"] for row in rows] == [12, 52]


def test_the_command_calibrates(beamclip: Invoke, shards_dir: Path, recipe_file: Path) -> None:
    outcome = beamclip(
        *("cache", "plan", "--shards", shards_dir, "--recipe", recipe_file, "--device", "cpu"),
        *("--set", "teacher.batch_size=4", "--views", "3"),
    )
    assert outcome.code == 0, outcome.err
    assert "the teacher alone" in outcome.out


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--samples", "5"),
        ("--rate", "5"),
        ("--shards", "x", "--samples", "5", "--rate", "5"),
        ("--recipe", "digits"),
        ("--samples", "5", "--rate", "5", "--views", "0"),
        ("--samples", "5", "--rate", "5", "--views", "many"),
    ],
    ids=" ".join,
)
def test_half_a_question_is_a_usage_error(beamclip: Invoke, words: tuple[str, ...]) -> None:
    outcome = beamclip("cache", "plan", *words)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
