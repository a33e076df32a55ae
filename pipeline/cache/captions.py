"""Reads cached captions, and finds the rows of a split that they tell of.

Shape letters: K captions, N rows of a split, D teacher dimension.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache import layout
from pipeline.cache.arrays import REDO, attributes_of, read_raw
from pipeline.errors import CacheError, CacheMismatchError
from pipeline.options import differences, nearest


@dataclass(frozen=True)
class Captions:
    """Captions of a split's samples, as the teacher embeds them, in the order of the shards.

    embeddings_KD: float32, normalised. Of a teacher that reads no text D is 0, or the width of the
    text encoder that embedded them, in a space of its own: `encoder` says which. rows_K: int64, the
    row of the opened split that each tells of, -1 if the opened generation has no such shard.
    valid_K: whether there is a row, and it has its targets. texts: as they lie in the shards,
    stripped; `cuts` are those of which a part was embedded ({caption, kept: characters, tokens: of
    the whole}). shards: all that were read for captions; a sample of theirs without one is in no
    row.
    """

    name: str
    embeddings_KD: np.ndarray
    rows_K: np.ndarray
    valid_K: np.ndarray
    texts: tuple[str, ...]
    token_counts_K: np.ndarray
    cuts: tuple[Mapping[str, int], ...]
    shards: tuple[str, ...]
    encoder: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class StoredCaptions:
    """A set of captions as it lies in a cache, whatever the generation.

    samples_K2: int64, (place in `shards`, ordinal in that shard). shards: {name, bytes, sha256}.
    counts: samples read, captioned, captions. left_out: texts that could not be taken, by reason.
    encoder: the fingerprint of the text encoder that embedded them, where the teacher reads none.
    """

    name: str
    split: str
    embeddings_KD: np.ndarray
    texts: tuple[str, ...]
    token_counts_K: np.ndarray
    samples_K2: np.ndarray
    shards: tuple[Mapping[str, Any], ...]
    teacher_digest: str
    cuts: tuple[Mapping[str, int], ...]
    counts: Mapping[str, int]
    left_out: Mapping[str, int]
    encoder: Mapping[str, Any] | None = None


def read_captions(cache: Path, name: str) -> StoredCaptions:
    """Return a set of captions, held against its digests; raises CacheError."""
    folder = cache / "captions" / name
    known = layout.caption_names(cache)
    if name not in known:
        hint = nearest(name, known) if known else "it has none: `beamclip captions add`"
        raise CacheError(f"{cache} has no captions {name!r}: {hint}")
    arrays = {array: read_raw(folder, array) for array in layout.CAPTION_ARRAYS}
    attributes = attributes_of(folder)
    if layout.content_digests(arrays) != attributes["digests"]:
        raise CacheError(f"{folder} does not match its digests; {REDO}")
    try:
        return StoredCaptions(
            name=name,
            split=attributes["split"],
            embeddings_KD=arrays["embeddings"],
            texts=tuple(arrays["texts"].tolist()),
            token_counts_K=arrays["token_counts"],
            samples_K2=arrays["samples"],
            shards=tuple(attributes["shards"]),
            teacher_digest=attributes["teacher"],
            cuts=tuple(attributes["cuts"]),
            counts=attributes["counts"],
            left_out=attributes["left_out"],
            encoder=attributes.get("encoder"),
        )
    except (KeyError, TypeError) as error:
        raise CacheError(
            f"{folder}: damaged zarr.json ({error!r}); `beamclip captions remove` it, and add it "
            "again"
        ) from None


def located(
    stored: StoredCaptions,
    split: str,
    shards: Sequence[layout.CachedShard],
    valid_N: np.ndarray,
    teacher_digest: str,
) -> Captions:
    """Find the rows of an opened split that captions tell of, by shard and ordinal.

    Raises CacheError for captions of another split, CacheMismatchError for those of another teacher
    or of other contents of the shards.
    """
    if stored.split != split:
        raise CacheError(f"captions {stored.name!r} are of split {stored.split}, not of {split}")
    opened = {shard.name: shard for shard in shards}
    read = {shard["name"]: shard["sha256"] for shard in stored.shards if shard["name"] in opened}
    changed = differences(
        {"teacher": stored.teacher_digest, "sha256": read},
        {"teacher": teacher_digest, "sha256": {name: opened[name].sha256 for name in read}},
    )
    if changed:
        raise CacheMismatchError(
            f"captions {stored.name!r} were made from something else than this cache; take them "
            "away with `beamclip captions remove` and add them again:",
            changed,
        )
    firsts = [opened[s["name"]].first if s["name"] in opened else -1 for s in stored.shards]
    first_K = np.array(firsts, np.int64)[stored.samples_K2[:, 0]]
    valid_K = first_K >= 0
    rows_K = np.where(valid_K, first_K + stored.samples_K2[:, 1], -1)
    valid_K[valid_K] = valid_N[rows_K[valid_K]]
    return Captions(
        name=stored.name,
        embeddings_KD=stored.embeddings_KD,
        rows_K=rows_K,
        valid_K=valid_K,
        texts=stored.texts,
        token_counts_K=stored.token_counts_K,
        cuts=stored.cuts,
        shards=tuple(shard["name"] for shard in stored.shards),
        encoder=stored.encoder,
    )
