"""Small inputs of probes."""

from dataclasses import replace

import numpy as np

from pipeline.cache.captions import Captions
from pipeline.cache.reader import Anchors
from pipeline.contracts import Features

D = 16


def rows(count: int, seed: int) -> np.ndarray:
    """Return random vectors of norm 1, float32."""
    values = np.random.default_rng(seed).normal(size=(count, D))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def anchors(embeddings_AD: np.ndarray, *, labelled: bool = True) -> Anchors:
    """Return a prompt set of one text per class."""
    names = tuple(f"class {i}" for i in range(len(embeddings_AD)))
    texts = tuple((name,) for name in names)
    counts = np.ones((len(names), 1), np.int32)
    return Anchors("own", embeddings_AD, names, texts, ("{label}",), counts, "", labelled)


def features(embedding_ND: np.ndarray, labels_N: np.ndarray) -> Features:
    """Return what is known of a teacher: an embedding is all its features."""
    return Features(embedding_ND, embedding_ND, labels_N, np.arange(len(labels_N)))


def of_a_student(seed: int, labels_N: np.ndarray) -> Features:
    """Return features of another dimension than the embedding, clouds around their classes."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(100, 2 * D))
    features_NF = 3 * (centres[labels_N] + 2 * generator.normal(size=(len(labels_N), 2 * D)))
    embedding_ND = features_NF[:, :D] + 3 * generator.normal(size=(len(labels_N), D))
    embedding_ND /= np.linalg.norm(embedding_ND, axis=1, keepdims=True)
    found = features(embedding_ND.astype(np.float32), labels_N)
    return replace(found, features_NF=features_NF.astype(np.float32))


def captions(embeddings_KD: np.ndarray, rows_K: np.ndarray) -> Captions:
    """Return captions of the rows; those of row -1 tell of none."""
    count = len(rows_K)
    texts = tuple(f"caption {i}" for i in range(count))
    counts_K = np.ones(count, np.int32)
    return Captions(
        "own", embeddings_KD, rows_K, rows_K >= 0, texts, counts_K, (), ("test-000000",)
    )
