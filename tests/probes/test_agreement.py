"""Agreement is what the plain formulas say of student and teacher, in float64."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from pipeline.cache.reader import Anchors
from pipeline.contracts import Features
from pipeline.errors import ProbeError
from pipeline.probes import nearness
from pipeline.probes.agreement import AgreementOptions, linear_cka, run
from pipeline.probes.contract import Subject
from tests.probes.samples import D, anchors, features, of_a_student, rows

N, A = 120, 11


def teacher_of(student: Features, noise: float = 0.15) -> Features:
    """Return embeddings near a student's, kept in float16 as a cache does; no row has a label."""
    generator = np.random.default_rng(7)
    embedding_ND = student.embedding_ND + noise * generator.normal(size=student.embedding_ND.shape)
    embedding_ND /= np.linalg.norm(embedding_ND, axis=1, keepdims=True)
    found = features(embedding_ND.astype(np.float16).astype(np.float32), student.labels_N)
    return replace(found, labels_N=np.full(len(embedding_ND), -1))


STUDENT = of_a_student(0, np.arange(N) % 5)
TEACHER = teacher_of(STUDENT)
ANCHORS = anchors(rows(A, seed=3))


def probe(
    student: Features, teacher: Features, given: Anchors = ANCHORS, tau: float = 0.01
) -> dict[str, float]:
    subject = Subject(test=student, teacher=teacher, anchors=given)
    return run(subject, AgreementOptions(tau=tau)).scores


def cosines(x_ND: np.ndarray, y_ND: np.ndarray) -> np.ndarray:
    x_ND, y_ND = x_ND.astype(np.float64), y_ND.astype(np.float64)
    norms_NN = np.linalg.norm(x_ND, axis=1)[:, None] * np.linalg.norm(y_ND, axis=1)[None]
    return x_ND @ y_ND.T / norms_NN


def cka_by_pairs(x_NF: np.ndarray, y_ND: np.ndarray) -> float:
    """Return CKA through HSIC of N x N kernels (Kornblith et al. 2019, equations 3 and 4)."""
    count = len(x_NF)
    centring_NN = np.eye(count) - 1 / count
    x_NN, y_NN = (z.astype(np.float64) @ z.T.astype(np.float64) for z in (x_NF, y_ND))

    def hsic(k_NN: np.ndarray, l_NN: np.ndarray) -> float:
        return float(np.trace(k_NN @ centring_NN @ l_NN @ centring_NN)) / (count - 1) ** 2

    return hsic(x_NN, y_NN) / np.sqrt(hsic(x_NN, x_NN) * hsic(y_NN, y_NN))


def test_nearest_anchors_by_hand() -> None:
    student, teacher = STUDENT, teacher_of(STUDENT, noise=0.6)
    student_NA = cosines(student.embedding_ND, ANCHORS.embeddings_AD)
    teacher_NA = cosines(teacher.embedding_ND, ANCHORS.embeddings_AD)
    same = inside = other_way = 0
    for ours, theirs in zip(student_NA, teacher_NA, strict=True):
        five = sorted(range(A), key=lambda place: -ours[place])[:5]
        same += five[0] == theirs.argmax()
        inside += int(theirs.argmax()) in five
        other_way += five[0] in np.argsort(-theirs)[:5]
    scores = probe(student, teacher)
    assert (scores["agreement"], scores["top1_in_top5"]) == (same / N, inside / N)
    assert 0 < scores["agreement"] < scores["top1_in_top5"] < 1
    assert inside != other_way


@pytest.mark.parametrize("tau", [0.01, 0.07, 1.0])
def test_kl_is_scipys_relative_entropy_from_teacher_to_student(tau: float) -> None:
    p_NA = softmax(cosines(TEACHER.embedding_ND, ANCHORS.embeddings_AD) / tau, axis=1)
    q_NA = softmax(cosines(STUDENT.embedding_ND, ANCHORS.embeddings_AD) / tau, axis=1)
    expected = rel_entr(p_NA, q_NA).sum(axis=1).mean()
    found = probe(STUDENT, TEACHER, tau=tau)["kl"]
    assert found == pytest.approx(expected, rel=1e-9)
    assert found > 0
    assert found != pytest.approx(rel_entr(q_NA, p_NA).sum(axis=1).mean(), rel=1e-5)


def test_a_softmax_that_underflows_leaves_kl_finite() -> None:
    scores = probe(STUDENT, TEACHER, tau=1e-5)
    assert np.isfinite(scores["kl"])
    assert scores["kl"] > 0


def test_cosine_is_the_mean_over_rows() -> None:
    expected = np.diag(cosines(STUDENT.embedding_ND, TEACHER.embedding_ND)).mean()
    assert probe(STUDENT, TEACHER)["cosine"] == pytest.approx(expected, rel=1e-12)


def test_cka_is_that_of_kernels_over_all_pairs_of_rows() -> None:
    scores = probe(STUDENT, TEACHER)
    expected = cka_by_pairs(STUDENT.features_NF, TEACHER.embedding_ND)
    beside = cka_by_pairs(STUDENT.embedding_ND, TEACHER.embedding_ND)
    assert scores["cka"] == pytest.approx(expected, rel=1e-9)
    assert scores["embedding_cka"] == pytest.approx(beside, rel=1e-9)
    assert 0 < expected < beside < 1


def test_cka_knows_no_rotation_scale_or_shift() -> None:
    turn_FF, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(2 * D, 2 * D)))
    turned_NF = 0.3 * STUDENT.features_NF.astype(np.float64) @ turn_FF + 20
    assert linear_cka(turned_NF, STUDENT.features_NF) == pytest.approx(1, abs=1e-12)
    found = linear_cka(turned_NF, TEACHER.embedding_ND)
    assert found == pytest.approx(linear_cka(STUDENT.features_NF, TEACHER.embedding_ND))


@pytest.mark.parametrize("value", [0.0, 0.1, 1000.3])
def test_a_student_that_says_the_same_of_everything_shares_nothing(value: float) -> None:
    dead_NF = np.full((5000, 8), value, np.float32)
    noise_NF = dead_NF * (1 + 1e-7 * np.random.default_rng(0).normal(size=dead_NF.shape))
    other_ND = rows(5000, seed=1)
    assert linear_cka(dead_NF, other_ND) == 0
    assert linear_cka(noise_NF.astype(np.float32), other_ND) == 0
    assert linear_cka(dead_NF, dead_NF) == 0


def test_ckas_memory_does_not_grow_with_pairs_of_rows() -> None:
    x_ND, y_ND = rows(20_000, seed=1), rows(20_000, seed=2)  # 3 GB of pairs
    tracemalloc.start()
    linear_cka(x_ND, y_ND)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 8 << 20


def test_a_teacher_agrees_with_itself() -> None:
    scores = probe(TEACHER, TEACHER)
    assert scores == {
        "agreement": 1,
        "top1_in_top5": 1,
        "kl": 0,
        "cosine": pytest.approx(1, abs=1e-12),
        "cka": pytest.approx(1, abs=1e-12),
        "embedding_cka": pytest.approx(1, abs=1e-12),
    }


def test_anchors_that_are_no_labels_serve_too() -> None:
    """A sample of classes, or several anchors of one: the rows need no label."""
    other = anchors(ANCHORS.embeddings_AD, labelled=False)
    assert probe(STUDENT, TEACHER, other) == probe(STUDENT, TEACHER)


def test_among_five_anchors_the_top_5_says_nothing() -> None:
    scores = probe(STUDENT, TEACHER, anchors(rows(5, seed=3)))
    assert "top1_in_top5" not in scores
    assert "agreement" in scores


def test_between_anchors_of_one_text_there_is_no_disagreement() -> None:
    once_AD = rows(4, seed=3)
    once, twice = anchors(once_AD), anchors(np.concatenate([once_AD, once_AD]))
    one, other = (probe(STUDENT, TEACHER, given) for given in (once, twice))
    assert one["agreement"] == other["agreement"]
    assert one["kl"] == pytest.approx(other["kl"])


def test_many_blocks_are_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = probe(STUDENT, TEACHER)
    monkeypatch.setattr(nearness, "BLOCK_BYTES", 7 * A * 8)
    assert probe(STUDENT, TEACHER) == pytest.approx(whole, rel=1e-12)


class TestRefusals:
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("part", ["features_NF", "embedding_ND"])
    def test_student_features_that_are_not_finite(self, bad: float, part: str) -> None:
        broken = getattr(STUDENT, part).copy()
        broken[5, 2] = bad
        with pytest.raises(ProbeError, match=r"test (features|embeddings) hold NaN or Inf"):
            probe(replace(STUDENT, **{part: broken}), TEACHER)

    def test_targets_that_are_not_finite(self) -> None:
        broken = TEACHER.embedding_ND.copy()
        broken[5, 2] = np.nan
        with pytest.raises(ProbeError, match="teacher's targets hold NaN or Inf: the cache"):
            probe(STUDENT, replace(TEACHER, embedding_ND=broken))

    def test_other_rows_than_the_teachers(self) -> None:
        with pytest.raises(ProbeError, match="the same rows"):
            probe(STUDENT, replace(TEACHER, rows_N=TEACHER.rows_N[::-1]))
        with pytest.raises(ProbeError, match="the student has 120, the teacher 119"):
            probe(STUDENT, Features(*(value[1:] for value in vars(TEACHER).values())))

    def test_no_row(self) -> None:
        none = Features(*(value[:0] for value in vars(TEACHER).values()))
        with pytest.raises(ProbeError, match="no row"):
            probe(none, none)

    def test_a_teacher_of_another_dimension(self) -> None:
        with pytest.raises(ProbeError, match="have 16 dimensions, the teacher has 15"):
            probe(STUDENT, replace(TEACHER, embedding_ND=TEACHER.embedding_ND[:, 1:]))

    def test_anchors_of_another_dimension(self) -> None:
        with pytest.raises(ProbeError, match="16 dimensions, prompt set own has 8"):
            probe(STUDENT, TEACHER, anchors(rows(A, 3)[:, :8]))

    def test_a_temperature_of_nothing(self) -> None:
        with pytest.raises(ValueError, match="tau is above 0, not 0"):
            AgreementOptions(tau=0)
