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
from pipeline.shards import write_shards
from pipeline.tables import anchors_table
from pipeline.texts import add_anchors
from tests.inputs import build, labelled_samples


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
        assert item.labelled == item.expected
        assert item.recall == pytest.approx(right / item.labelled)
        assert item.precision == (pytest.approx(right / item.images) if item.images else None)
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
    assert report.labelled == 0
    assert report.top1 is None
    assert [item.expected for item in report.classes] == [report.images / 2] * 2
    assert [item.recall for item in report.classes] == [None, None]
    table = anchors_table(report)
    assert "labels left aside: " in table
    assert "recall" not in table


def other_file(prompt_file: str, path: Path, **fields: object) -> str:
    """Write the tests' prompt file with other fields, as another dataset's."""
    content = yaml.safe_load(Path(prompt_file).read_text(encoding="utf-8"))
    content = {**content, "dataset": "other", **fields}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def test_labels_are_left_aside_where_the_classes_are_not_theirs(
    cache_copy: Path, prompt_file: str, tmp_path: Path
) -> None:
    """As CIFAR-100's class names over digits (Fig. 4): label 1 is no aquarium fish."""
    names = [{"name": name} for name in ("red square", "aquarium fish", "baby")]
    sets = {"plain": ["A photo of a {label}."]}
    foreign = other_file(prompt_file, tmp_path / "a.yaml", classes=names, prompt_sets=sets)
    add_anchors(cache_copy, load_sets(foreign), device="cpu")
    report = report_anchors(cache_copy, "other-plain")
    assert (report.labelled, report.top1) == (0, None)
    why = "label 1 is 'green square' in shapes-plain, class 1 here 'aquarium fish'"
    assert report.unlabelled_because == why
    assert f"labels left aside: {why}" in anchors_table(report)
    assert report_anchors(cache_copy, "shapes-context").unlabelled_because is None


def test_separate_anchors_are_judged_by_class_with_its_labels(
    cache_copy: Path, prompt_file: str, tmp_path: Path
) -> None:
    templates = ["A photo of a {label}.", "A photo of one {label}.", "A {label}."]
    sets = {"each": {"templates": templates, "anchors": "separate"}}
    file = other_file(prompt_file, tmp_path / "a.yaml", prompt_sets=sets)
    add_anchors(cache_copy, load_sets(file), device="cpu")
    report = report_anchors(cache_copy, "other-each", against="shapes-plain", split="test")
    cache = TargetCache.open(cache_copy, "test", EVAL)
    cosines = cache.targets(np.arange(12), 0) @ cache.anchors("other-each").embeddings_AD.T
    nearest = cosines.argmax(axis=1) // 3
    assert report.top1 == pytest.approx((nearest == cache.column("label")).mean())
    assert len(report.classes) == 3
    assert all(item.rival != item.name for item in report.classes)
    assert all(pair.one != pair.other for pair in report.near_duplicates)


def test_few_labels_do_not_make_a_good_teacher_look_bad(
    tmp_path: Path, recipe_file: Path, prompt_file: str
) -> None:
    """Of 30 images 6 are labelled, of two of the three classes."""
    pairs = labelled_samples(30)
    for place, (_, members) in enumerate(pairs):
        if place % 5 or members["cls"] == b"2":
            del members["cls"]
    write_shards(pairs, tmp_path / "shards", "train", per_shard=30)
    cache = build(tmp_path / "cache", tmp_path / "shards", recipe_file)
    report = report_anchors(cache, "shapes-plain")
    targets = TargetCache.open(cache, "train", EVAL)
    labels = targets.column("label")
    cosines = targets.targets(np.arange(30), 0) @ targets.anchors("shapes-plain").embeddings_AD.T
    nearest, known = cosines.argmax(axis=1), labels >= 0
    assert (report.images, report.labelled) == (30, known.sum()) == (30, 4)
    assert "30 images of train, 4 labelled" in anchors_table(report)
    by_name = {item.name: item for item in report.classes}
    for number, name in enumerate(("red square", "green square")):
        right = ((nearest == number) & (labels == number)).sum()
        drawn = ((nearest == number) & known).sum()
        assert by_name[name].precision == (pytest.approx(right / drawn) if drawn else None)
        assert by_name[name].ambiguity == pytest.approx(1 - 2 * right / (drawn + 2))
        assert by_name[name].expected == 15
    assert report.classes[-1].name == "blue square"
    assert report.classes[-1].ambiguity is None
    assert "blue square" not in [item.name for item in report.ambiguous()]
    assert "no images of 1 classes: 'blue square'" in anchors_table(report)


def test_anchors_of_one_vector_are_told_though_no_image_is_near_them(
    cache_copy: Path, prompt_file: str, tmp_path: Path
) -> None:
    """A teacher's tokenizer reads both apostrophes as one."""
    classes = [{"name": n} for n in ("red square", "crane's bill", "tin", "crane\u2019s bill")]
    sets = {"plain": ["A photo of a {label}."]}
    file = other_file(prompt_file, tmp_path / "a.yaml", classes=classes, prompt_sets=sets)
    add_anchors(cache_copy, load_sets(file), device="cpu")
    report = report_anchors(cache_copy, "other-plain")
    first = report.near_duplicates[0]
    assert (first.one, first.other) == ("crane's bill", "crane\u2019s bill")
    assert first.cosine == pytest.approx(1, abs=1e-6)
    assert "\"crane's bill\" and 'crane\u2019s bill': " in anchors_table(report)


def test_what_cannot_be_measured_is_refused(
    cache_copy: Path, prompt_file: str, recipe_file: Path
) -> None:
    [whole] = load_sets(prompt_file, ["plain"])
    add_anchors(cache_copy, [sampled(whole, n, seed=0) for n in (1, 2)], device="cpu")
    with pytest.raises(CacheError, match="no anchors 'shapes-plan': did you mean 'shapes-plain'"):
        report_anchors(cache_copy, "shapes-plan")
    with pytest.raises(DataError, match="has one class"):
        report_anchors(cache_copy, "shapes-plain.1of3-seed0")
    with pytest.raises(DataError, match="do not have the same classes"):
        report_anchors(cache_copy, "shapes-plain", against="shapes-plain.2of3-seed0")
    with pytest.raises(CacheError, match="split"):
        report_anchors(cache_copy, "shapes-plain", split="val")


def test_the_table_is_short_and_says_what_it_left_out(sealed_cache: Path) -> None:
    report = report_anchors(sealed_cache, "shapes-context", against="shapes-plain")
    table = anchors_table(report, most=2)
    assert "... and 1 more (--json has all)" in table
    assert "before: shapes-plain" in table
    assert len(table.splitlines()) < 16
    titles = table.splitlines()[4].split()
    assert titles == [
        *("class", "ambiguity", "before", "images", "expected", "certainty"),
        *("recall", "before", "precision", "before", "rival"),
    ]


def test_recall_before_and_after_stand_in_the_table(sealed_cache: Path) -> None:
    report = report_anchors(sealed_cache, "shapes-context", against="shapes-plain", split="test")
    rows = {line[:12].strip(): line[12:].split() for line in anchors_table(report).splitlines()}
    for item in report.classes:
        assert item.recall is not None
        assert item.before is not None
        assert item.before.recall is not None
        assert rows[item.name][5:7] == [f"{item.recall:.3f}", f"{item.before.recall:.3f}"]
