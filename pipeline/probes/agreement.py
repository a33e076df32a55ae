"""Agreement probe: how near a student comes to its teacher on the same images, without labels.

Shape letters: N rows, B a block of them, F feature dimension, D teacher dimension, A anchors.
"""

from collections.abc import Mapping

import numpy as np

from pipeline.contracts import Features
from pipeline.errors import ProbeError
from pipeline.options import options
from pipeline.probes.checks import check_finite, check_space
from pipeline.probes.contract import Result, Subject
from pipeline.probes.nearness import normalised, products, rank_of

_BLOCK = 4096  # rows
# Features whose variance is a smaller part of their mean square are one vector, rounded in float32.
_CONSTANT = 1e-13


@options
class AgreementOptions:
    """tau: temperature of the softmax over anchors; CLIP's learned scale of 100 is 0.01."""

    tau: float = 0.01

    def __post_init__(self) -> None:
        if self.tau <= 0:
            raise ValueError(f"tau is above 0, not {self.tau}")


def run(subject: Subject, spec: AgreementOptions) -> Result:
    """Compare the test rows with the teacher's; labels play no part.

    Scores: agreement (share of rows whose nearest anchor is the teacher's nearest), top1_in_top5
    (whose 5 nearest hold it; with more than 5 anchors), cosine (mean, to the teacher's embedding),
    kl (mean of KL(P_teacher || P_student), P = softmax(cosines to the anchors / tau), in nats), cka
    (linear, of the backbone features and the teacher's embedding) and embedding_cka. A teacher
    against itself: 1, 1, 1, 0, 1, 1. Computed in float64. Raises ProbeError if the teacher's are
    other rows, for another dimension, or for what is not finite.
    """
    test, teacher, anchors = subject.test, subject.need("teacher"), subject.need("anchors")
    _check(test, teacher)
    check_space(test.embedding_ND, anchors.embeddings_AD, f"prompt set {anchors.name}")
    ours_ND, theirs_ND, anchors_AD = (
        normalised(x.astype(np.float64))
        for x in (test.embedding_ND, teacher.embedding_ND, anchors.embeddings_AD)
    )
    cka = linear_cka(test.embedding_ND, teacher.embedding_ND)
    alone = test.features_NF is test.embedding_ND  # a teacher, known by its embedding alone
    return Result(
        {
            **_over_anchors(ours_ND, theirs_ND, anchors_AD, spec.tau),
            "cosine": float((ours_ND * theirs_ND).sum(axis=1).mean()),
            "cka": cka if alone else linear_cka(test.features_NF, teacher.embedding_ND),
            "embedding_cka": cka,
        }
    )


def linear_cka(x_NF: np.ndarray, y_ND: np.ndarray) -> float:
    """Return the linear CKA of two views of the same rows, 0 to 1 (Kornblith et al. 2019, section
    3, arXiv 1905.00414): |Y'X|^2 / (|X'X| |Y'Y|), Frobenius norms, columns centred.

    The plain estimator, which few rows push up, not the debiased one. Takes memory as F^2, however
    many the rows. Features that are one and the same vector share nothing: 0.
    """
    cross_DF, own_FF, other_DD = _grams(x_NF, y_ND)
    if min(_varied(x_NF, own_FF), _varied(y_ND, other_DD)) <= _CONSTANT:
        return 0.0
    norms = np.linalg.norm(own_FF) * np.linalg.norm(other_DD)
    return float(np.linalg.norm(cross_DF) ** 2 / norms)


def _check(test: Features, teacher: Features) -> None:
    if not np.array_equal(test.rows_N, teacher.rows_N):
        raise ProbeError(
            f"agreement needs the same rows of both: the student has {len(test.rows_N)}, the "
            f"teacher {len(teacher.rows_N)}, or in another order"
        )
    if len(test.rows_N) == 0:
        raise ProbeError("agreement needs test samples: there is no row")
    check_space(test.embedding_ND, teacher.embedding_ND, "the teacher")
    check_finite(test.features_NF, "test features")
    check_finite(test.embedding_ND, "test embeddings")
    check_finite(teacher.embedding_ND, "teacher's targets", because="the cache is damaged")


def _over_anchors(
    ours_ND: np.ndarray, theirs_ND: np.ndarray, anchors_AD: np.ndarray, tau: float
) -> Mapping[str, float]:
    from scipy.special import log_softmax

    ranks, divergences = [], []
    blocks = zip(products(ours_ND, anchors_AD), products(theirs_ND, anchors_AD), strict=True)
    for (_, ours_BA), (_, theirs_BA) in blocks:
        ranks.append(rank_of(ours_BA, theirs_BA.argmax(axis=1)))
        log_q_BA, log_p_BA = (log_softmax(x / tau, axis=1) for x in (ours_BA, theirs_BA))
        divergences.append((np.exp(log_p_BA) * (log_p_BA - log_q_BA)).sum(axis=1))
    rank_N = np.concatenate(ranks)
    scores = {"agreement": float((rank_N == 0).mean())}
    if len(anchors_AD) > 5:
        scores["top1_in_top5"] = float((rank_N < 5).mean())
    return {**scores, "kl": float(np.concatenate(divergences).mean())}


def _grams(x_NF: np.ndarray, y_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return Y'X, X'X and Y'Y of the centred rows, float64."""
    mean_F, mean_D = (x.mean(axis=0, dtype=np.float64) for x in (x_NF, y_ND))
    cross_DF = np.zeros((len(mean_D), len(mean_F)))
    own_FF, other_DD = np.zeros((len(mean_F),) * 2), np.zeros((len(mean_D),) * 2)
    for begin in range(0, len(x_NF), _BLOCK):
        x_BF = x_NF[begin : begin + _BLOCK] - mean_F
        y_BD = y_ND[begin : begin + _BLOCK] - mean_D
        cross_DF += y_BD.T @ x_BF
        own_FF += x_BF.T @ x_BF
        other_DD += y_BD.T @ y_BD
    return cross_DF, own_FF, other_DD


def _varied(x_NF: np.ndarray, gram_FF: np.ndarray) -> float:
    """Return which part of the mean square is variance, 0 to 1."""
    squares = len(x_NF) * float((x_NF.mean(axis=0, dtype=np.float64) ** 2).sum())
    variance = float(np.trace(gram_FF))
    return variance / max(squares + variance, np.finfo(np.float64).tiny)
