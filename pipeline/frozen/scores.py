"""Scores retrieval by a model behind frozen encoders, beside what a random order would.

Shape letters: N images, K captions, D image feature dimension, E width of the space of both.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pipeline.contracts import Features
from pipeline.frozen.features import FrozenSplit
from pipeline.frozen.model import FrozenPair
from pipeline.probes.contract import Subject
from pipeline.probes.retrieval import RetrievalOptions, run

_AT_ONCE = 4096  # images or captions
_AT = (1, 5, 10)
_WAYS = ("image_to_text", "text_to_image")
Scores = dict[str, float]


def score_pair(model: FrozenPair, split: FrozenSplit) -> Scores:
    """Return the retrieval probe's scores of a split's images and all of their captions."""
    valid_N = np.flatnonzero(split.cache.column("valid"))
    image_ND = _embed(model.embed_images, split.images(valid_N, 0))
    labels_N = np.array(split.cache.column("label")[valid_N])
    text_KE = _embed(model.embed_texts, split.captions.embeddings_KD)
    captions = replace(split.captions, embeddings_KD=text_KE)
    features = Features(image_ND, image_ND, labels_N, valid_N)
    return run(Subject(test=features, captions=captions), RetrievalOptions()).scores


def by_chance(split: FrozenSplit) -> Scores:
    """Return the mean of the same hit rates over all random orders.

    Of K captions, of which an image has c of its own, none is among the first k with the
    probability (K-c choose k) / (K choose k).
    """
    rows_K = split.captions.rows_K[split.told()]
    num_images, num_captions = int(split.cache.column("valid").sum()), len(rows_K)
    _, own_N = np.unique(rows_K, return_counts=True)
    scores: Scores = {}
    for k in _AT:
        drawn = np.arange(min(k, num_captions))
        left_N = np.maximum(num_captions - own_N[:, None] - drawn, 0) / (num_captions - drawn)
        scores[f"image_to_text_r{k}"] = float(1 - left_N.prod(axis=1).mean())
        scores[f"text_to_image_r{k}"] = min(1.0, k / num_images)
    return scores


def retrieval_table(rows: Mapping[str, Scores]) -> str:
    """Return one line per row: hits among the first 1, 5 and 10, both ways, as shares."""
    columns = [(way, k) for way in _WAYS for k in _AT]
    width = max(len(name) for name in rows)
    titles = [f"{way.replace('_to_', '-')} R@{k}" for way, k in columns]
    lines = [" " * width + "".join(f"   {title}" for title in titles)]
    for name, scores in rows.items():
        cells = [f"{scores[f'{way}_r{k}']:.4f}" for way, k in columns]
        line = "".join(f"   {c.rjust(len(t))}" for c, t in zip(cells, titles, strict=True))
        lines.append(name.ljust(width) + line)
    return "\n".join(lines)


def _embed(embed: Callable[[Tensor], Tensor], features: np.ndarray) -> np.ndarray:
    parts = [
        embed(torch.from_numpy(features[begin : begin + _AT_ONCE])).numpy()
        for begin in range(0, len(features), _AT_ONCE)
    ]
    return np.concatenate(parts)
