"""Retrieval is the field's hit rate, held against clip_benchmark's and torchmetrics' own."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.functional.retrieval import retrieval_recall
from torchmetrics.retrieval import RetrievalHitRate, RetrievalPrecision

from pipeline.cache.captions import Captions
from pipeline.cache.reader import Anchors
from pipeline.contracts import Features
from pipeline.errors import ProbeError, RecipeError
from pipeline.options import parse
from pipeline.probes import nearness
from pipeline.probes.contract import Result, Subject
from pipeline.probes.retrieval import RetrievalOptions, run
from tests.probes.samples import D, anchors, captions, features, of_a_student, rows

IMAGES = 60


def captioned(seed: int, least: int, most: int) -> tuple[Features, Captions]:
    """Return images with captions somewhere around them, in a mixed order."""
    generator = np.random.default_rng(seed)
    image_ND = rows(IMAGES, seed)
    rows_K = np.repeat(np.arange(IMAGES), generator.integers(least, most + 1, size=IMAGES))
    generator.shuffle(rows_K)
    text_KD = image_ND[rows_K] + 0.5 * generator.normal(size=(len(rows_K), D))
    text_KD /= np.linalg.norm(text_KD, axis=1, keepdims=True)
    test = features(image_ND, np.full(IMAGES, -1))
    return test, captions(text_KD.astype(np.float32), rows_K)


def probe(
    test: Features, texts: Captions | None = None, given: Anchors | None = None, **options: Any
) -> Result:
    return run(Subject(test=test, captions=texts, anchors=given), RetrievalOptions(**options))


def pairs(test: Features, texts: Captions) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and whether they belong together, [K,N]."""
    cosine_KN = torch.from_numpy(texts.embeddings_KD @ test.embedding_ND.T)
    return cosine_KN, torch.from_numpy(texts.rows_K[:, None] == test.rows_N)


def hit_rate(cosine_QN: torch.Tensor, own_QN: torch.Tensor, k: int) -> float:
    queries_QN = torch.arange(len(cosine_QN))[:, None].expand(cosine_QN.shape)
    metric = RetrievalHitRate(top_k=k)
    metric.update(cosine_QN.flatten(), own_QN.flatten(), indexes=queries_QN.flatten())
    return float(metric.compute())


@pytest.mark.parametrize(("least", "most"), [(5, 5), (4, 7), (1, 1)])
@pytest.mark.parametrize("k", [1, 5, 10])
def test_r_at_k_is_torchmetrics_hit_rate(least: int, most: int, k: int) -> None:
    test, texts = captioned(0, least, most)
    cosine_KN, own_KN = pairs(test, texts)
    scores = probe(test, texts).scores
    expected = hit_rate(cosine_KN, own_KN, k), hit_rate(cosine_KN.T, own_KN.T, k)
    assert 0 < min(expected) < 1
    assert scores[f"text_to_image_r{k}"] == pytest.approx(expected[0], abs=1e-6)
    assert scores[f"image_to_text_r{k}"] == pytest.approx(expected[1], abs=1e-6)


@pytest.mark.parametrize(("least", "most"), [(5, 5), (4, 7)])
@pytest.mark.parametrize("k", [1, 5, 10])
def test_r_at_k_is_clip_benchmarks(least: int, most: int, k: int) -> None:
    # Installed without what it depends on, none of which its metric needs.
    judge = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    test, texts = captioned(1, least, most)
    cosine_KN, own_KN = pairs(test, texts)
    scores = probe(test, texts).scores
    for direction, (cosine, own) in {
        "text_to_image": (cosine_KN, own_KN),
        "image_to_text": (cosine_KN.T, own_KN.T),
    }.items():
        expected = (judge.recall_at_k(cosine, own, k) > 0).float().mean().item()
        assert scores[f"{direction}_r{k}"] == pytest.approx(expected, abs=1e-6)


def test_it_is_not_recall() -> None:
    """Of 5 captions one can be first, which is a hit, and a recall of a fifth."""
    test, texts = captioned(2, 5, 5)
    cosine_KN, own_KN = pairs(test, texts)
    recalls = [
        float(retrieval_recall(cosine, own, top_k=1))
        for cosine, own in zip(cosine_KN.T, own_KN.T, strict=True)
    ]
    hits = probe(test, texts).scores["image_to_text_r1"]
    assert hits == pytest.approx(5 * np.mean(recalls), abs=1e-6)


def test_median_rank_is_that_of_the_first_of_their_own() -> None:
    test, texts = captioned(3, 1, 7)
    cosine_KN, own_KN = (x.numpy() for x in pairs(test, texts))

    def median(cosine_QN: np.ndarray, own_QN: np.ndarray) -> float:
        orders = [np.argsort(-cosine, kind="stable") for cosine in cosine_QN]
        firsts = [own[order].argmax() + 1 for own, order in zip(own_QN, orders, strict=True)]
        return float(np.median(firsts))

    scores = probe(test, texts).scores
    assert scores["text_to_image_median_rank"] == median(cosine_KN, own_KN) > 1
    assert scores["image_to_text_median_rank"] == median(cosine_KN.T, own_KN.T)


def test_only_directions_count() -> None:
    test, texts = captioned(0, 4, 7)
    generator = np.random.default_rng(0)
    scaled_ND, scaled_KD = (
        x * generator.uniform(0.1, 10, size=(len(x), 1)).astype(np.float32)
        for x in (test.embedding_ND, texts.embeddings_KD)
    )
    scaled = replace(test, embedding_ND=scaled_ND), replace(texts, embeddings_KD=scaled_KD)
    assert probe(*scaled).scores == probe(test, texts).scores


@pytest.mark.parametrize("count", [3, 40, 1100])
def test_of_equal_cosines_the_earlier_comes_first(count: int) -> None:
    once_ND = rows(count, seed=5)
    test = features(np.concatenate([once_ND, once_ND]), np.full(2 * count, -1))
    first, second = (
        probe(test, captions(once_ND, np.arange(count) + begin)).scores for begin in (0, count)
    )
    assert (first["text_to_image_r1"], second["text_to_image_r1"]) == (1, 0)
    assert (first["text_to_image_median_rank"], second["text_to_image_median_rank"]) == (1, 2)


class TestWhichCaptions:
    def test_an_image_without_any_is_no_query_but_is_looked_through(self) -> None:
        test, texts = captioned(4, 3, 5)
        bare = np.isin(texts.rows_K, [0, 7, 8])
        kept = captions(texts.embeddings_KD[~bare], texts.rows_K[~bare])
        cosine_KN, own_KN = pairs(test, kept)
        asked_N = own_KN.any(dim=0)
        assert int(asked_N.sum()) == IMAGES - 3
        scores = probe(test, kept).scores
        expected = hit_rate(cosine_KN.T[asked_N], own_KN.T[asked_N], 1)
        assert scores["image_to_text_r1"] == pytest.approx(expected, abs=1e-6)
        assert scores["text_to_image_r1"] == pytest.approx(hit_rate(cosine_KN, own_KN, 1), abs=1e-6)

    def test_the_first_of_each_image_if_so_many_are_asked_for(self) -> None:
        test, texts = captioned(5, 2, 7)
        seen: dict[int, int] = {}
        chosen = []
        for place, row in enumerate(texts.rows_K.tolist()):
            seen[row] = seen.get(row, 0) + 1
            if seen[row] <= 3:
                chosen.append(place)
        kept = captions(texts.embeddings_KD[chosen], texts.rows_K[chosen])
        found = probe(test, texts, captions_per_image=3)
        assert found == probe(test, kept)
        assert found.scores != probe(test, texts).scores
        assert found.details["captions"]["captions"] == len(chosen) < len(texts.rows_K)

    def test_they_are_matched_by_row_not_by_place(self) -> None:
        """Skipped images leave gaps; a split may come in another order."""
        test, texts = captioned(6, 4, 7)
        order_N = np.random.default_rng(0).permutation(IMAGES)[:-5]
        some = Features(*(value[order_N] for value in vars(test).values()))
        there = np.isin(texts.rows_K, order_N)
        place_of = {row: place for place, row in enumerate(order_N.tolist())}
        renumbered_K = np.array([place_of[row] for row in texts.rows_K[there].tolist()])
        expected = probe(
            replace(some, rows_N=np.arange(len(order_N))),
            captions(texts.embeddings_KD[there], renumbered_K),
        )
        assert probe(some, texts) == expected

    def test_those_of_no_row_or_of_no_target_are_left_out(self) -> None:
        test, texts = captioned(7, 2, 4)
        away = np.arange(len(texts.rows_K)) % 5 == 0
        invalid = replace(texts, valid_K=~away)
        lost = replace(texts, rows_K=np.where(away, -1, texts.rows_K), valid_K=~away)
        kept = captions(texts.embeddings_KD[~away], texts.rows_K[~away])
        assert probe(test, invalid) == probe(test, lost) == probe(test, kept)


class TestAverageMedianRank:
    DIRECTIONS = ("image_to_text_average_median_rank", "text_to_image_average_median_rank")

    def naive(self, test: Features, texts: Captions, size: int, folds: int) -> tuple[float, float]:
        """Image by image, in float64, with an order of the whole list for each."""
        image_of = dict(zip(test.rows_N.tolist(), test.embedding_ND.astype(float), strict=True))
        captions_of: dict[int, list[np.ndarray]] = {}
        for row, embedding in zip(texts.rows_K.tolist(), texts.embeddings_KD, strict=True):
            captions_of.setdefault(row, []).append(embedding.astype(float))
        rows_ = sorted(captions_of)
        medians: tuple[list[float], list[float]] = ([], [])
        for fold in range(folds):
            chosen = rows_[fold * size : (fold + 1) * size]
            for draw in range(5):
                images = [image_of[row] for row in chosen]
                drawn = [captions_of[row][draw % len(captions_of[row])] for row in chosen]
                for found, asked, searched in (
                    (medians[0], images, drawn),
                    (medians[1], drawn, images),
                ):
                    ranks = []
                    for place, query in enumerate(asked):
                        order = sorted(range(size), key=lambda i: (-(query @ searched[i]), i))
                        ranks.append(order.index(place) + 1)
                    found.append(sorted(ranks)[size // 2])  # of an odd number
        return float(np.mean(medians[0])), float(np.mean(medians[1]))

    @pytest.mark.parametrize(("size", "folds"), [(11, 5), (19, 3), (7, 1)])
    def test_it_is_a_naive_loops(self, size: int, folds: int) -> None:
        """Of images in another order than their rows', with 2 to 7 captions each."""
        test, texts = captioned(8, 2, 7)
        noise_KD = np.random.default_rng(1).normal(size=texts.embeddings_KD.shape)
        away_KD = (texts.embeddings_KD + 0.5 * noise_KD).astype(np.float32)
        away_KD /= np.linalg.norm(away_KD, axis=1, keepdims=True)
        texts = replace(texts, embeddings_KD=away_KD)
        order_N = np.random.default_rng(0).permutation(IMAGES)
        mixed = Features(*(value[order_N] for value in vars(test).values()))
        scores = probe(mixed, texts, rank_images=size, rank_folds=folds).scores
        expected = self.naive(test, texts, size, folds)
        assert tuple(scores[name] for name in self.DIRECTIONS) == pytest.approx(expected)
        assert min(expected) > 1

    def test_where_each_caption_is_its_image_it_is_1(self) -> None:
        image_ND, rows_K = rows(IMAGES, 0), np.repeat(np.arange(IMAGES), 5)
        test, texts = features(image_ND, np.full(IMAGES, -1)), captions(image_ND[rows_K], rows_K)
        scores = probe(test, texts, rank_images=12).scores
        assert [scores[name] for name in self.DIRECTIONS] == [1, 1]

    def test_of_random_embeddings_it_is_near_half_the_images(self) -> None:
        count, rows_K = 2000, np.repeat(np.arange(2000), 3)
        test = features(rows(count, 0), np.full(count, -1))
        scores = probe(test, captions(rows(len(rows_K), 1), rows_K), rank_images=400).scores
        for name in self.DIRECTIONS:
            assert scores[name] == pytest.approx(200.5, rel=0.05)

    def test_a_model_that_maps_all_to_one_point_gains_nothing_by_ties(self) -> None:
        test, texts = captioned(9, 5, 5)
        same = replace(texts, embeddings_KD=np.tile(texts.embeddings_KD[:1], (5 * IMAGES, 1)))
        scores = probe(test, same, rank_images=11).scores
        assert scores["image_to_text_average_median_rank"] == 6  # the middle of 1 to 11

    def test_other_scores_are_as_without(self) -> None:
        test, texts = captioned(10, 2, 7)
        without, found = probe(test, texts), probe(test, texts, rank_images=10, rank_folds=2)
        assert {**found.scores, **without.scores} == found.scores
        assert found.scores.keys() - without.scores.keys() == set(self.DIRECTIONS)
        assert found.details["captions"] == {
            **without.details["captions"],
            "rank_images": 10,
            "rank_folds": 2,
        }

    def test_too_few_captioned_images_are_counted(self) -> None:
        test, texts = captioned(11, 5, 5)
        bare = texts.rows_K == 3
        kept = captions(texts.embeddings_KD[~bare], texts.rows_K[~bare])
        with pytest.raises(
            ProbeError, match="takes 60 test images with captions, and there are 59"
        ):
            probe(test, kept, rank_images=12)
        assert probe(test, texts, rank_images=12).scores.keys() >= set(self.DIRECTIONS)

    @pytest.mark.parametrize("wrong", [{"rank_images": 1}, {"rank_folds": 0}, {"rank_images": 2.5}])
    def test_numbers_that_mean_nothing(self, wrong: dict[str, object]) -> None:
        with pytest.raises(RecipeError, match=next(iter(wrong))):
            parse(RetrievalOptions, wrong, where="test")


def classed(seed: int, classes: int = 12, count: int = 200) -> tuple[Features, Anchors]:
    """Return images around class prompts, unevenly many of each, of the last class none."""
    generator = np.random.default_rng(seed)
    anchors_AD = rows(classes, seed)
    labels_N = np.minimum(generator.geometric(0.25, count) - 1, classes - 2)
    embedding_ND = anchors_AD[labels_N] + 0.3 * generator.normal(size=(count, D))
    embedding_ND /= np.linalg.norm(embedding_ND, axis=1, keepdims=True)
    return features(embedding_ND.astype(np.float32), labels_N), anchors(anchors_AD)


class TestClassPrompts:
    def test_they_are_torchmetrics_precision_and_hit_rate_at_5(self) -> None:
        test, given = classed(0)
        cosine_AN = torch.from_numpy(given.embeddings_AD @ test.embedding_ND.T)
        own_AN = torch.from_numpy(np.arange(12)[:, None] == test.labels_N)
        prompts_AN = torch.arange(12)[:, None].expand(cosine_AN.shape)
        metric = RetrievalPrecision(top_k=5, empty_target_action="skip")
        metric.update(cosine_AN.flatten(), own_AN.flatten(), indexes=prompts_AN.flatten())
        scores = probe(test, given=given).scores
        assert scores["class_p5"] == pytest.approx(float(metric.compute()), abs=1e-6)
        asked = own_AN.any(dim=1)
        expected = hit_rate(cosine_AN[asked], own_AN[asked], 5)
        assert scores["class_hit5"] == pytest.approx(expected, abs=1e-6)
        assert 0 < scores["class_p5"] < scores["class_hit5"] <= 1

    def test_the_details_are_the_five_images_of_each(self) -> None:
        test, given = classed(1)
        test = replace(test, rows_N=1000 + 3 * test.rows_N)
        found = probe(test, given=given)
        classes = found.details["classes"]
        assert json.loads(json.dumps(classes, allow_nan=False)) == classes
        assert [item["label"] for item in classes] == sorted(set(test.labels_N.tolist()))
        for item in classes:
            cosines = test.embedding_ND @ given.embeddings_AD[item["label"]]
            places = np.argsort(-cosines, kind="stable")[:5]
            assert item["name"] == f"class {item['label']}"
            assert item["images"] == (test.labels_N == item["label"]).sum()
            assert item["rows"] == test.rows_N[places].tolist()
            assert item["right"] == (test.labels_N[places] == item["label"]).tolist()
            assert item["p5"] == sum(item["right"]) / 5
        assert found.scores["class_p5"] == pytest.approx(np.mean([c["p5"] for c in classes]))

    def test_rows_without_a_label_are_left_out(self) -> None:
        test, given = classed(2)
        holes = np.arange(200) % 3 == 0
        kept = Features(*(value[~holes] for value in vars(test).values()))
        holed = replace(test, labels_N=np.where(holes, -1, test.labels_N))
        assert probe(holed, given=given) == probe(kept, given=given)

    def test_fewer_than_five_images_cannot_fill_five_places(self) -> None:
        anchors_AD = rows(2, seed=0)
        test = features(anchors_AD[[0, 0, 1]], np.array([0, 0, 1]))
        assert probe(test, given=anchors(anchors_AD)).scores == {
            "class_p5": pytest.approx((2 + 1) / 5 / 2),
            "class_hit5": 1,
        }


def test_captions_and_class_prompts_stand_side_by_side() -> None:
    test, given = classed(3)
    texts = captions(rows(300, seed=9), np.arange(300) % 200)
    both, one, other = probe(test, texts, given), probe(test, texts), probe(test, given=given)
    assert both.scores == {**one.scores, **other.scores}
    assert both.details == {**one.details, **other.details}


@pytest.mark.parametrize("why", ["no label", "no anchor for each label"])
def test_captions_alone_do_where_class_prompts_cannot(why: str) -> None:
    test, texts = captioned(0, 4, 7)
    given = anchors(rows(3, 0), labelled=why == "no label")
    if why != "no label":
        test = replace(test, labels_N=np.arange(IMAGES) % 3)
    assert probe(test, texts, given) == probe(test, texts)


def test_a_students_features_play_no_part() -> None:
    student = of_a_student(0, np.arange(50) % 4)
    given, texts = anchors(rows(4, 0)), captions(rows(50, 1), np.arange(50))
    alone = features(student.embedding_ND, student.labels_N)
    assert probe(student, texts, given) == probe(alone, texts, given)


def test_many_blocks_are_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    test, given = classed(4)
    texts = captions(rows(300, seed=9), np.arange(300) % 200)
    whole = probe(test, texts, given)
    monkeypatch.setattr(nearness, "BLOCK_BYTES", 7 * 200 * 4)
    assert probe(test, texts, given) == whole


class TestRefusals:
    def test_neither_captions_nor_class_prompts(self) -> None:
        test, given = classed(0)
        unlabelled = replace(test, labels_N=np.full(200, -1))
        needs = "captions of the test samples .`beamclip captions add`., or labels"
        for subject, missing in (
            (Subject(test=test), "no prompt set"),
            (Subject(test=unlabelled, anchors=given), "no test sample has a label"),
            (Subject(test=test, anchors=anchors(rows(12, 0), labelled=False)), "prompt set own"),
        ):
            with pytest.raises(ProbeError, match=f"{needs}.*{missing}"):
                run(subject, RetrievalOptions())

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_embeddings_that_are_not_finite(self, bad: float) -> None:
        test, texts = captioned(0, 4, 7)
        test.embedding_ND[3, 2] = bad
        with pytest.raises(ProbeError, match="test embeddings hold NaN or Inf: training"):
            probe(test, texts)
        test, texts = captioned(0, 4, 7)
        texts.embeddings_KD[3, 2] = bad
        with pytest.raises(ProbeError, match="captions' embeddings hold NaN or Inf: the cache"):
            probe(test, texts)

    def test_captions_of_other_rows(self) -> None:
        test, texts = captioned(0, 4, 7)
        for other in (
            replace(texts, rows_K=texts.rows_K + IMAGES),
            replace(texts, valid_K=np.zeros(len(texts.rows_K), bool)),
            captions(texts.embeddings_KD[:0], texts.rows_K[:0]),
        ):
            with pytest.raises(ProbeError, match="own tell of none of the 60 test rows"):
                probe(test, other)

    def test_a_label_outside_the_prompts(self) -> None:
        test, given = classed(0)
        few = anchors(given.embeddings_AD[:3])
        with pytest.raises(ProbeError, match=r"prompt set own has 3 classes \(0 to 2\)"):
            probe(test, given=few)

    def test_texts_of_another_dimension(self) -> None:
        test, given = classed(0)
        with pytest.raises(ProbeError, match="16 dimensions, prompt set own has 8"):
            probe(test, given=anchors(given.embeddings_AD[:, :8]))
        test, texts = captioned(0, 4, 7)
        with pytest.raises(ProbeError, match="16 dimensions, captions own has 8"):
            probe(test, replace(texts, embeddings_KD=texts.embeddings_KD[:, :8]))

    def test_no_row(self) -> None:
        with pytest.raises(ProbeError, match="no row"):
            probe(features(rows(0, 0), np.empty(0, np.int64)), None, anchors(rows(3, 0)))

    @pytest.mark.parametrize("wrong", [0, -1, "some", 2.5, True])
    def test_options_that_mean_nothing(self, wrong: object) -> None:
        with pytest.raises(RecipeError, match="captions_per_image"):
            parse(RetrievalOptions, {"captions_per_image": wrong}, where="test")

    @pytest.mark.parametrize("right", ["all", 5])
    def test_options_that_do(self, right: object) -> None:
        parsed = parse(RetrievalOptions, {"captions_per_image": right}, where="test")
        assert parsed.captions_per_image == right
