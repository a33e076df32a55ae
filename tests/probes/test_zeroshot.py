"""Zero-shot is the nearest class text by cosine, with the field's own scores."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    recall_score,
    top_k_accuracy_score,
)

from pipeline.cache.reader import Anchors, read_anchors
from pipeline.errors import ProbeError
from pipeline.probes import nearness
from pipeline.probes.contract import Subject
from pipeline.probes.zeroshot import ZeroshotOptions, run
from tests.probes.samples import D, anchors, features, rows


def probe(embedding_ND: np.ndarray, labels_N: np.ndarray, given: Anchors) -> dict[str, float]:
    subject = Subject(test=features(embedding_ND, labels_N), anchors=given)
    return run(subject, ZeroshotOptions()).scores


def detailed(embedding_ND: np.ndarray, labels_N: np.ndarray, given: Anchors) -> dict[str, Any]:
    subject = Subject(test=features(embedding_ND, labels_N), anchors=given)
    return run(subject, ZeroshotOptions()).details


def noisy(classes: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return anchors, embeddings around them, and uneven labels."""
    generator = np.random.default_rng(seed)
    anchors_AD = rows(classes, seed)
    labels_N = np.minimum(generator.geometric(0.3, count) - 1, classes - 1)
    embedding_ND = anchors_AD[labels_N] + 0.4 * generator.normal(size=(count, D))
    embedding_ND /= np.linalg.norm(embedding_ND, axis=1, keepdims=True)
    return anchors_AD, embedding_ND.astype(np.float32), labels_N


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_top1_is_the_cosine_argmax_by_hand(classes: int) -> None:
    anchors_AD, embedding_ND, labels_N = noisy(classes, 200)
    right = 0
    for embedding, label in zip(embedding_ND, labels_N, strict=True):
        cosines = [float(np.dot(embedding.astype(np.float64), a)) for a in anchors_AD]
        right += cosines.index(max(cosines)) == label
    scores = probe(embedding_ND, labels_N, anchors(anchors_AD))
    assert scores["top1"] == right / 200
    assert 0 < scores["top1"] < 1


def test_mean_per_class_is_scikit_learns_balanced_accuracy() -> None:
    anchors_AD, embedding_ND, labels_N = noisy(8, 300)
    predicted_N = (embedding_ND @ anchors_AD.T).argmax(axis=1)
    scores = probe(embedding_ND, labels_N, anchors(anchors_AD))
    assert scores["mean_per_class"] == pytest.approx(
        balanced_accuracy_score(labels_N, predicted_N), abs=1e-12
    )
    assert scores["mean_per_class"] != scores["top1"]


def test_top5_is_scikit_learns_and_only_there_with_more_than_5_classes() -> None:
    anchors_AD, embedding_ND, labels_N = noisy(12, 300)
    scores = probe(embedding_ND, labels_N, anchors(anchors_AD))
    cosines_NA = embedding_ND @ anchors_AD.T
    assert scores["top5"] == pytest.approx(
        top_k_accuracy_score(labels_N, cosines_NA, k=5, labels=np.arange(12))
    )
    assert scores["top5"] > scores["top1"]
    for classes in (2, 5):
        anchors_AD, embedding_ND, labels_N = noisy(classes, 50)
        assert "top5" not in probe(embedding_ND, labels_N, anchors(anchors_AD))


@pytest.mark.parametrize("classes", [3, 7, 100])
def test_between_equal_cosines_the_lower_class_wins(classes: int) -> None:
    anchors_AD = np.repeat(rows(1, seed=1), classes, axis=0)
    embedding_ND = rows(9, seed=2)
    for label in range(classes if classes < 10 else 3):
        scores = probe(embedding_ND, np.full(9, label), anchors(anchors_AD))
        assert scores["top1"] == float(label == 0)


@pytest.mark.parametrize("names", [8, 40, 700])
def test_of_two_classes_with_one_text_the_lower_wins(names: int) -> None:
    """ImageNet's class names hold such pairs."""
    once_AD, embedding_ND = rows(names, seed=1), rows(60, seed=2)
    lower_N = (embedding_ND @ once_AD.T).argmax(axis=1)
    twice = anchors(np.concatenate([once_AD, once_AD]))
    assert probe(embedding_ND, lower_N, twice)["top1"] == 1
    assert probe(embedding_ND, lower_N + names, twice)["top1"] == 0


def test_classes_that_no_test_row_has_do_not_count() -> None:
    anchors_AD = rows(6, seed=0)
    scores = probe(anchors_AD[[1, 1, 4]], np.array([1, 2, 4]), anchors(anchors_AD))
    assert scores["top1"] == pytest.approx(2 / 3)
    assert scores["mean_per_class"] == pytest.approx(2 / 3)  # of classes 1, 2 and 4


def test_rows_without_a_label_are_left_out() -> None:
    anchors_AD, embedding_ND, labels_N = noisy(6, 60)
    holes = np.arange(60) % 4 == 1
    holed = probe(embedding_ND, np.where(holes, -1, labels_N), anchors(anchors_AD))
    assert holed == probe(embedding_ND[~holes], labels_N[~holes], anchors(anchors_AD))


def test_the_train_rows_play_no_part() -> None:
    anchors_AD, embedding_ND, labels_N = noisy(6, 60)
    test, given = features(embedding_ND, labels_N), anchors(anchors_AD)
    trains = [features(rows(5, seed), np.full(5, 99)) for seed in (1, 2)]
    one, other = (run(Subject(test, train, anchors=given), ZeroshotOptions()) for train in trains)
    assert one == other


def test_cached_anchors_are_open_clips_zero_shot_classifier(
    sealed_cache: Path, teacher_dir: Path
) -> None:
    """Per class, open_clip averages normalised template embeddings and normalises again."""
    cached = read_anchors(sealed_cache, "shapes-plain")
    assert len(cached.templates) == 2
    model = open_clip.create_model_from_pretrained(
        f"local-dir:{teacher_dir}", return_transform=False
    ).eval()
    weights_DA = open_clip.build_zero_shot_classifier(
        model,
        open_clip.get_tokenizer(f"local-dir:{teacher_dir}"),
        cached.class_names,
        [lambda name, t=template: t.format(label=name) for template in cached.templates],
        num_classes_per_batch=None,
        device="cpu",
        use_tqdm=False,
    )
    np.testing.assert_allclose(cached.embeddings_AD, weights_DA.T.numpy(), atol=1e-6)

    embedding_ND = rows(50, seed=3)
    logits_NA = 100.0 * torch.from_numpy(embedding_ND) @ weights_DA
    scores = probe(embedding_ND, logits_NA.argmax(dim=1).numpy(), cached)
    assert scores["top1"] == scores["mean_per_class"] == 1


class TestDetails:
    def test_confusion_and_classes_are_scikit_learns(self) -> None:
        anchors_AD, embedding_ND, labels_N = noisy(8, 300)
        predicted_N = (embedding_ND @ anchors_AD.T).argmax(axis=1)
        details = detailed(embedding_ND, labels_N, anchors(anchors_AD))
        expected_AA = confusion_matrix(labels_N, predicted_N, labels=np.arange(8))
        found_AA = np.zeros((8, 8), int)
        for true, predicted, count in details["confusion"]:
            assert count > 0
            found_AA[true, predicted] = count
        np.testing.assert_array_equal(found_AA, expected_AA)
        recall_A = recall_score(labels_N, predicted_N, average=None, labels=np.arange(8))
        assert details["class_names"] == [f"class {i}" for i in range(8)]
        wrong_AA = expected_AA - np.diag(np.diag(expected_AA))
        assert details["per_class"] == [
            {
                "label": label,
                "name": f"class {label}",
                "images": int(expected_AA[label].sum()),
                "recall": pytest.approx(recall_A[label]),
                "most_confused_with": int(wrong_AA[label].argmax()),
            }
            for label in range(8)
        ]

    def test_where_there_is_nothing_to_say(self) -> None:
        anchors_AD = rows(4, seed=0)
        details = detailed(anchors_AD[[0, 0, 2, 3]], np.array([0, 0, 1, 1]), anchors(anchors_AD))
        found = [(c["images"], c["recall"], c["most_confused_with"]) for c in details["per_class"]]
        assert found == [(2, 1.0, None), (2, 0.0, 2), (0, None, None), (0, None, None)]

    def test_they_are_plain_json_without_a_line_per_row(self) -> None:
        anchors_AD, embedding_ND, labels_N = noisy(5, 4000)
        text = json.dumps(detailed(embedding_ND, labels_N, anchors(anchors_AD)), allow_nan=False)
        assert len(text) < 4000


def test_many_blocks_are_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    anchors_AD, embedding_ND, labels_N = noisy(9, 300)
    whole = detailed(embedding_ND, labels_N, anchors(anchors_AD))
    monkeypatch.setattr(nearness, "BLOCK_BYTES", 7 * 9 * 4)
    assert detailed(embedding_ND, labels_N, anchors(anchors_AD)) == whole


class TestRefusals:
    def test_no_label_at_all(self) -> None:
        with pytest.raises(ProbeError, match="no test sample has a label"):
            probe(rows(4, 0), np.full(4, -1), anchors(rows(3, 1)))

    def test_no_row_at_all(self) -> None:
        with pytest.raises(ProbeError, match="no test sample has a label"):
            probe(rows(0, 0), np.empty(0, np.int64), anchors(rows(3, 1)))

    def test_a_label_outside_the_prompts(self) -> None:
        with pytest.raises(ProbeError, match=r"label 3, prompt set own has 3 classes \(0 to 2\)"):
            probe(rows(4, 0), np.array([0, 1, 3, -1]), anchors(rows(3, 1)))

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_embeddings_that_are_not_finite(self, bad: float) -> None:
        embedding_ND = rows(4, 0)
        embedding_ND[2, 3] = bad
        with pytest.raises(ProbeError, match="test embeddings hold NaN or Inf"):
            probe(embedding_ND, np.zeros(4, np.int64), anchors(rows(3, 1)))

    def test_embeddings_of_another_dimension_than_the_anchors(self) -> None:
        with pytest.raises(ProbeError, match=r"16 dimensions.*8"):
            probe(rows(4, 0), np.zeros(4, np.int64), anchors(rows(3, 1)[:, :8]))
