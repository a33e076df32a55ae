"""Opens frozen features of a split's images, and of the captions that tell of them.

Shape letters: K captions, B batch, D image feature dimension, T text feature dimension.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache import layout
from pipeline.cache.captions import Captions, StoredCaptions, located, read_captions
from pipeline.cache.reader import TargetCache, read_manifest
from pipeline.errors import CacheError, CacheMismatchError
from pipeline.options import differences
from pipeline.schedule import EVAL


@dataclass(frozen=True)
class FrozenSplit:
    """Images of one split as a vision teacher sees them, captions as a text encoder reads them."""

    cache: TargetCache
    captions: Captions

    @property
    def encoder(self) -> Mapping[str, Any]:
        """What embedded the captions."""
        return self.captions.encoder or {}

    @property
    def text_dim(self) -> int:
        """The text encoder's width T."""
        return int(self.captions.embeddings_KD.shape[1])

    def told(self) -> np.ndarray:
        """Return which captions tell of a row with targets, int64."""
        return np.flatnonzero(self.captions.valid_K)

    def images(self, rows_B: np.ndarray, epoch: int) -> np.ndarray:
        """Return the images' features in the view that is an epoch's, float32 [B,D], normalised."""
        return self.cache.targets(rows_B, epoch % self.cache.num_views)


def open_splits(path: Path, train: str, test: str) -> tuple[FrozenSplit, FrozenSplit]:
    """Open two sets of captions by name with their images: train in any view, test in its eval.

    Raises CacheError unless the cache's teacher reads no text and a text encoder embedded both sets
    and they are of two splits, CacheMismatchError for sets of two encoders, or for one that was
    made from another teacher or other shards than the cache.
    """
    manifest = read_manifest(path)
    if layout.reads_text(manifest):
        raise CacheError(
            f"{path}: its teacher, {manifest['teacher']['model']}, reads texts: images and "
            "captions are in one space already, and `beamclip probe` scores them. The ablation "
            "with frozen encoders wants a cache of a teacher that sees images alone"
        )
    stored = {name: _embedded(path, name) for name in (train, test)}
    if stored[train].split == stored[test].split:
        raise CacheError(
            f"captions {train!r} and {test!r} are both of split {stored[train].split}: train on "
            "those of one split and score on those of another"
        )
    if apart := differences(_identity(stored[train]), _identity(stored[test])):
        raise CacheMismatchError(
            f"captions {train!r} (cache has) and {test!r} (asked for) were embedded by two text "
            "encoders; embed both by one, `beamclip captions add --text-encoder`:",
            apart,
        )
    return _opened(path, stored[train], None), _opened(path, stored[test], EVAL)


def _embedded(path: Path, name: str) -> StoredCaptions:
    stored = read_captions(path, name)
    if stored.encoder is None:
        raise CacheError(
            f"captions {name!r} of {path} are texts without embeddings: `beamclip captions add "
            f"{path} --split {stored.split} --name {name} --text-encoder NAME` embeds them"
        )
    return stored


def _identity(stored: StoredCaptions) -> dict[str, Any]:
    return {**(stored.encoder or {}), "model": None}


def _opened(path: Path, stored: StoredCaptions, schedule: str | None) -> FrozenSplit:
    cache = TargetCache.open(path, stored.split, schedule)
    digest = layout.teacher_digest(cache.manifest["teacher"])
    valid_N = cache.column("valid")
    split = FrozenSplit(cache, located(stored, cache.split, cache.shards, valid_N, digest))
    if not len(split.told()):
        raise CacheError(
            f"captions {stored.name!r} tell of no row with targets: add those of the shards that "
            f"{path} was made from"
        )
    return split
