"""Chance is what random orders score; the table shows it beside the model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.contracts import Features
from pipeline.frozen.features import open_splits
from pipeline.frozen.scores import by_chance, retrieval_table
from pipeline.probes.contract import Subject
from pipeline.probes.retrieval import RetrievalOptions, run


def test_chance_is_the_mean_of_random_orders(colour_cache: Path) -> None:
    _, test = open_splits(colour_cache, "train", "test")
    rows_K = np.array([0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8])  # images 9 to 19 have none
    captions = replace(test.captions, rows_K=rows_K, valid_K=np.ones(12, bool))
    split = replace(test, captions=captions)
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(3000):
        image_ND, text_KD = generator.normal(size=(20, 8)), generator.normal(size=(12, 8))
        features = Features(image_ND, image_ND, np.full(20, -1), np.arange(20))
        given = replace(captions, embeddings_KD=text_KD)
        drawn.append(run(Subject(test=features, captions=given), RetrievalOptions()).scores)
    for name, value in by_chance(split).items():
        mean = np.mean([scores[name] for scores in drawn])
        assert value == pytest.approx(mean, abs=0.01), name


def test_the_table_has_a_line_for_each() -> None:
    ways = ("image_to_text", "text_to_image")
    scores = {f"{way}_r{k}": k / 10 for way in ways for k in (1, 5, 10)}
    title, first, second = retrieval_table({"frozen": scores, "chance": scores}).splitlines()
    assert title.strip().split("   ")[:3] == ["image-text R@1", "image-text R@5", "image-text R@10"]
    assert first.split() == ["frozen", *["0.1000", "0.5000", "1.0000"] * 2]
    assert second.startswith("chance")
    assert len({len(line) for line in (title, first, second)}) == 1
