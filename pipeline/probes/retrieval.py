"""Retrieval probe: captions find their images, images their captions, class prompts their class.

Shape letters: N rows, B a block of queries, K captions, A anchors (one per class), D teacher
dimension.
"""

from typing import Any, Literal

import numpy as np

from pipeline.cache.captions import Captions
from pipeline.cache.reader import Anchors
from pipeline.contracts import Features
from pipeline.errors import ProbeError
from pipeline.options import options
from pipeline.probes.checks import check_classes, check_finite, check_space
from pipeline.probes.contract import Result, Subject
from pipeline.probes.nearness import normalised, products, rank_of, top

_AT = (1, 5, 10)
_SHOWN = 5  # images of each class prompt
_DRAWS = 5  # of a caption of each image, for the average median rank


@options
class RetrievalOptions:
    """captions_per_image: all of them, or the first so many of each image.

    COCO's test images have 5 to 7: papers take all 25,010, or the first 5 of each.
    rank_images: the average median rank is taken among so many images (the document: 1000 of COCO,
    5 times), not at all if null. rank_folds: of so many such sets of images.
    """

    captions_per_image: Literal["all"] | int = "all"
    rank_images: int | None = None
    rank_folds: int = 5

    def __post_init__(self) -> None:
        limit = self.captions_per_image
        if isinstance(limit, int) and limit < 1:
            raise ValueError(f"captions_per_image is all or at least 1, not {limit}")
        if self.rank_images is not None and self.rank_images < 2:
            raise ValueError(f"rank_images is at least 2, or null, not {self.rank_images}")
        if self.rank_folds < 1:
            raise ValueError(f"rank_folds is at least 1, not {self.rank_folds}")


def run(subject: Subject, spec: RetrievalOptions) -> Result:
    """Order one side by cosine for each query of the other; of equal ones the earlier comes first.

    With captions, scores image_to_text_r1, _r5, _r10 (the share of queries that have any of their
    own among the first k: a hit rate, as CLIP's papers report it, not recall), _median_rank (of the
    first of their own, from 1), and the same of text_to_image. An image without a caption is no
    query, but is among what captions look for. With rank_images also _average_median_rank of both
    directions (see `_average_median_ranks`). With labelled test rows and an anchor for each
    label, class_p5 and class_hit5: the share of right images among the first 5 of a class's prompt,
    and of prompts with any, over the classes that have images; details: classes [{label, name,
    images, p5, rows (of the split), right}]. Raises ProbeError if there is neither, for labels that
    the prompt set does not have, for texts of another dimension, for captions of other rows, and
    for fewer captioned images than rank_images times rank_folds.
    """
    if len(subject.test.rows_N) == 0:
        raise ProbeError("retrieval needs test samples: there is no row")
    check_finite(subject.test.embedding_ND, "test embeddings")
    scores: dict[str, float] = {}
    details: dict[str, Any] = {}
    if subject.captions is not None:
        found = _by_captions(subject.test, subject.captions, spec)
        scores, details = found.scores, found.details
    if (missing := _no_classes(subject)) is None:
        found = _by_classes(subject.test, subject.need("anchors"))
        scores, details = {**scores, **found.scores}, {**details, **found.details}
    elif subject.captions is None:
        raise ProbeError(
            "retrieval needs captions of the test samples (`beamclip captions add`), or labels of "
            f"them and a prompt set with one anchor for each: there are no captions, and {missing}"
        )
    return Result(scores, details)


def _no_classes(subject: Subject) -> str | None:
    """Return why class prompts cannot be scored, or None if they can."""
    if subject.anchors is None:
        return "no prompt set"
    if not subject.anchors.labelled:
        return f"prompt set {subject.anchors.name} does not hold one anchor for each label"
    return None if (subject.test.labels_N >= 0).any() else "no test sample has a label (.cls)"


def _by_captions(test: Features, captions: Captions, spec: RetrievalOptions) -> Result:
    check_space(test.embedding_ND, captions.embeddings_KD, f"captions {captions.name}")
    check_finite(captions.embeddings_KD, "captions' embeddings", because="the cache is damaged")
    chosen, image_K = _chosen(test, captions, spec.captions_per_image)
    image_ND, text_KD = _ready(test.embedding_ND), _ready(captions.embeddings_KD[chosen])
    queries = np.unique(image_K)
    scores = {
        **_hits("image_to_text", _ranks(image_ND[queries], text_KD, queries, image_K)),
        **_hits("text_to_image", _ranks(text_KD, image_ND, image_K, np.arange(len(image_ND)))),
    }
    counted = {"images": len(image_ND), "captioned": len(queries), "captions": len(image_K)}
    if spec.rank_images is not None:
        order_K = np.argsort(test.rows_N[image_K], kind="stable")
        pairs = image_ND[image_K[order_K]], text_KD[order_K], test.rows_N[image_K[order_K]]
        scores |= _average_median_ranks(*pairs, spec.rank_images, spec.rank_folds)
        counted |= {"rank_images": spec.rank_images, "rank_folds": spec.rank_folds}
    return Result(scores, {"captions": {"name": captions.name, **counted}})


def _average_median_ranks(
    image_KD: np.ndarray, text_KD: np.ndarray, row_K: np.ndarray, size: int, folds: int
) -> dict[str, float]:
    """Return the median rank (from 1) of the right one among `size`, averaged over folds and draws.

    Captions stand in the order of their images' rows, each beside its image. Fold f is the images
    f * size to (f + 1) * size - 1 of those with captions, by their rows; draw d takes of each its
    caption d modulo their number. Of equal ones the earlier row comes first. The measure of Aytar
    et al. 2017 (arXiv 1706.00932) and Cares et al. 2025.
    """
    _, first_N, count_N = np.unique(row_K, return_index=True, return_counts=True)
    if len(first_N) < size * folds:
        raise ProbeError(
            f"rank_images {size} in {folds} folds (rank_folds) takes {size * folds} test images "
            f"with captions, and there are {len(first_N)}: ask for fewer"
        )
    parts = [
        first_N[fold * size :][:size] + draw % count_N[fold * size :][:size]
        for fold in range(folds)
        for draw in range(_DRAWS)
    ]
    right = np.arange(size)

    def average(asked_KD: np.ndarray, searched_KD: np.ndarray) -> float:
        ranks = [_ranks(asked_KD[part], searched_KD[part], right, right) + 1 for part in parts]
        return float(np.mean([np.median(rank) for rank in ranks]))

    return {
        "image_to_text_average_median_rank": average(image_KD, text_KD),
        "text_to_image_average_median_rank": average(text_KD, image_KD),
    }


def _chosen(
    test: Features, captions: Captions, per_image: Literal["all"] | int
) -> tuple[np.ndarray, np.ndarray]:
    """Return which captions take part, and the place of each one's image among the test rows."""
    order_N = np.argsort(test.rows_N)
    found_K = np.searchsorted(test.rows_N, captions.rows_K, sorter=order_N)
    image_K = order_N[np.minimum(found_K, len(order_N) - 1)]
    chosen = np.flatnonzero(captions.valid_K & (test.rows_N[image_K] == captions.rows_K))
    if per_image != "all":
        chosen = chosen[_number(image_K[chosen]) < per_image]
    if len(chosen) == 0:
        raise ProbeError(
            f"captions {captions.name} tell of none of the {len(test.rows_N)} test rows: add those "
            "of the test shards, `beamclip captions add`"
        )
    return chosen, image_K[chosen]


def _number(image_K: np.ndarray) -> np.ndarray:
    """Return for each caption how many of its image come before it."""
    order_K = np.argsort(image_K, kind="stable")
    sorted_K = image_K[order_K]
    number_K = np.empty_like(image_K)
    number_K[order_K] = np.arange(len(image_K)) - np.searchsorted(sorted_K, sorted_K)
    return number_K


def _ranks(
    query_QD: np.ndarray, bank_ND: np.ndarray, wanted_Q: np.ndarray, image_N: np.ndarray
) -> np.ndarray:
    """Return, for each query, how many of the bank come before the first of its own image."""
    ranks = []
    for block, cosine_BN in products(query_QD, bank_ND):
        own_BN = image_N == wanted_Q[block][:, None]
        first_B = np.where(own_BN, cosine_BN, -np.inf).argmax(axis=1)
        ranks.append(rank_of(cosine_BN, first_B))
    return np.concatenate(ranks)


def _hits(direction: str, rank_Q: np.ndarray) -> dict[str, float]:
    hits = {f"{direction}_r{k}": float((rank_Q < k).mean()) for k in _AT}
    return {**hits, f"{direction}_median_rank": float(np.median(rank_Q + 1))}


def _by_classes(test: Features, anchors: Anchors) -> Result:
    known_N = test.labels_N >= 0
    labels_N, rows_N = test.labels_N[known_N], test.rows_N[known_N]
    check_classes(labels_N, anchors)
    check_space(test.embedding_ND, anchors.embeddings_AD, f"prompt set {anchors.name}")
    image_ND, prompt_AD = _ready(test.embedding_ND[known_N]), _ready(anchors.embeddings_AD)
    images_A = np.bincount(labels_N, minlength=len(prompt_AD))
    asked = np.flatnonzero(images_A)
    shown = [
        top(cosine_BN, min(_SHOWN, len(labels_N)))
        for _, cosine_BN in products(prompt_AD[asked], image_ND)
    ]
    classes = [
        {
            "label": label,
            "name": anchors.class_names[label],
            "images": int(images_A[label]),
            "p5": float((labels_N[places] == label).sum() / _SHOWN),
            "rows": rows_N[places].tolist(),
            "right": (labels_N[places] == label).tolist(),
        }
        for label, places in zip(asked.tolist(), np.concatenate(shown), strict=True)
    ]
    scores = {
        "class_p5": float(np.mean([item["p5"] for item in classes])),
        "class_hit5": float(np.mean([any(item["right"]) for item in classes])),
    }
    return Result(scores, {"classes": classes})


def _ready(x_ND: np.ndarray) -> np.ndarray:
    return normalised(x_ND.astype(np.float32))
