"""What images say of a prompt set is read from the cache alone."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.anchor_report import report_anchors
from pipeline.cache.reader import TargetCache
from pipeline.errors import CacheError, DataError
from pipeline.prompts import load_sets, sampled
from pipeline.schedule import EVAL
from pipeline.tables import anchors_table
from pipeline.texts import add_anchors


@pytest.fixture
def prompt_file(recipe_file: Path) -> str:
    return str(recipe_file.with_name("shapes-prompts.yaml"))


def test_recall_precision_and_top1_are_the_teachers_zero_shot(sealed_cache: Path) -> None:
    report = report_anchors(sealed_cache, "shapes-plain", split="test")
    cache = TargetCache.open(sealed_cache, "test", EVAL)
    rows = np.flatnonzero(cache.column("valid"))
    labels = cache.column("label")[rows]
    cosines = cache.targets(rows, 0) @ cache.anchors("shapes-plain").embeddings_AD.T
    nearest = cosines.argmax(axis=1)
    assert report.images == len(rows)
    assert report.top1 == pytest.approx((nearest == labels).mean())
    names = cache.anchors("shapes-plain").class_names
    for item in report.classes:
        number = names.index(item.name)
        right = ((nearest == number) & (labels == number)).sum()
        assert item.images == (nearest == number).sum()
        assert item.expected == (labels == number).sum()
        assert item.recall == pytest.approx(right / item.expected)
        assert item.precision == pytest.approx(right / max(1, item.images))
    scores = [item.ambiguity for item in report.classes]
    assert scores == sorted(scores, reverse=True)


def test_before_and_after_stand_beside_each_other(sealed_cache: Path) -> None:
    after = report_anchors(sealed_cache, "shapes-context", against="shapes-plain")
    before = {item.name: item for item in report_anchors(sealed_cache, "shapes-plain").classes}
    assert after.against == "shapes-plain"
    assert after.top1_before == report_anchors(sealed_cache, "shapes-plain").top1
    assert [item.before for item in after.classes] == [before[i.name] for i in after.classes]
    same = report_anchors(sealed_cache, "shapes-plain", against="shapes-plain")
    assert same.moved == 0
    assert after.has_context
    assert not same.has_context


def test_a_misleading_name_is_named_first_with_what_to_do(
    cache_copy: Path, prompt_file: str, tmp_path: Path
) -> None:
    """Two classes of one meaning: one of their anchors is left without images."""
    content = yaml.safe_load(Path(prompt_file).read_text(encoding="utf-8"))
    content["dataset"] = "odd"
    content["prompt_sets"] = {"plain": ["A photo of a {label}."]}
    content["classes"].append({"name": "green  squares!"})
    content["classes"].append({"name": "quarterly report on the price of tin"})
    path = tmp_path / "odd.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    add_anchors(cache_copy, load_sets(str(path)), device="cpu")
    report = report_anchors(cache_copy, "odd-plain")
    drawn = {item.name: item.images for item in report.classes}
    assert sum(drawn.values()) == report.images
    assert {item.name for item in report.ambiguous()} >= {n for n, i in drawn.items() if i == 0}
    table = anchors_table(report)
    worst = report.classes[0].name
    assert f"{worst!r}: add context (a cpa set), or a synonym, that tells it from" in table


def test_without_labels_an_even_share_is_expected(cache_copy: Path, prompt_file: str) -> None:
    [whole] = load_sets(prompt_file, ["plain"])
    add_anchors(cache_copy, [sampled(whole, 2, seed=0)], device="cpu")
    report = report_anchors(cache_copy, "shapes-plain.2of3-seed0")
    assert not report.labels
    assert report.top1 is None
    assert [item.expected for item in report.classes] == [report.images / 2] * 2
    assert [item.recall for item in report.classes] == [None, None]
    table = anchors_table(report)
    assert "no labels" in table
    assert "recall" not in table


def test_what_cannot_be_measured_is_refused(
    cache_copy: Path, prompt_file: str, recipe_file: Path
) -> None:
    [whole] = load_sets(prompt_file, ["plain"])
    add_anchors(cache_copy, [sampled(whole, n, seed=0) for n in (1, 2)], device="cpu")
    with pytest.raises(CacheError, match="no anchors 'shapes-plan': did you mean 'shapes-plain'"):
        report_anchors(cache_copy, "shapes-plan")
    with pytest.raises(DataError, match="has one anchor"):
        report_anchors(cache_copy, "shapes-plain.1of3-seed0")
    with pytest.raises(DataError, match="do not have the same anchors"):
        report_anchors(cache_copy, "shapes-plain", against="shapes-plain.2of3-seed0")
    with pytest.raises(CacheError, match="split"):
        report_anchors(cache_copy, "shapes-plain", split="val")


def test_the_table_is_short_and_says_what_it_left_out(sealed_cache: Path) -> None:
    report = report_anchors(sealed_cache, "shapes-context", against="shapes-plain")
    table = anchors_table(report, most=2)
    assert "... and 1 more (--json has all)" in table
    assert "before: shapes-plain" in table
    assert len(table.splitlines()) < 16
    assert {"ambiguity", "certainty", "recall", "before"} <= set(table.split())
