"""Lays embeddings out on a plane by t-SNE, the student's beside the teacher's.

Shape letters: N rows, D teacher dimension, C classes.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.contracts import Features
from pipeline.report.maps import glyph, scatter
from pipeline.report.seen import Seen
from pipeline.report.svg import NONE, Chart, percent

MOST_ROWS = 2000
_SEED = 0
_NEIGHBOURS = 5


def maps(seen: Sequence[Seen]) -> tuple[Chart, ...]:
    """Draw t-SNE of the teacher's and each student's embeddings of the same rows, seeded.

    Nothing for fewer than ten rows: there is nothing to see.
    """
    ground = seen[0].ground
    chosen = _rows(len(ground.labels_N))
    if len(chosen) < 10:
        return ()
    labels_N, names = ground.labels_N[chosen], ground.zeroshot.class_names
    encoders = [("Teacher", ground.teacher)]
    encoders += [(f"Student {one.run.name}", one.features) for one in seen]
    charts = []
    for title, features in encoders:
        plane_N2 = _plane(features, chosen)
        charts.append(scatter(title, plane_N2, labels_N, names, _table(plane_N2, labels_N, names)))
    return tuple(charts)


def _rows(count: int) -> np.ndarray:
    if count <= MOST_ROWS:
        return np.arange(count)
    drawn = np.random.default_rng(_SEED).choice(count, MOST_ROWS, replace=False)
    return np.sort(drawn)


def _plane(features: Features, chosen: np.ndarray) -> np.ndarray:
    """Return float32 [N,2]."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(chosen) - 1) / 3)
    model = TSNE(perplexity=perplexity, init="pca", random_state=_SEED, metric="cosine")
    return np.asarray(model.fit_transform(features.embedding_ND[chosen]), np.float32)


def _table(
    plane_N2: np.ndarray, labels_N: np.ndarray, names: Sequence[str]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return by class how many of an image's nearest on the plane are of its own class."""
    share_N = _purity(plane_N2, labels_N)
    rows = tuple(
        (
            glyph(label) or NONE,
            names[label] if 0 <= label < len(names) else "no label",
            str(int((labels_N == label).sum())),
            percent(float(share_N[labels_N == label].mean())),
        )
        for label in np.unique(labels_N).tolist()
    )
    return ("sign", "class", "images", "nearest of the same class %"), rows


def _purity(points_N2: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    count = min(_NEIGHBOURS, len(points_N2) - 1)
    near_NK = NearestNeighbors(n_neighbors=count).fit(points_N2).kneighbors(return_distance=False)
    return np.asarray((labels_N[near_NK] == labels_N[:, None]).mean(axis=1))
