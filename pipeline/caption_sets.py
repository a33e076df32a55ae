"""Keeps the captions of a split's samples, embedded if the cache's teacher reads text.

Where it does not, a text encoder may embed them, in a space of its own: frozen features for an
ablation (pipeline/frozen), no retrieval by the teacher. Shape letters: K captions, D dimension of
what embedded them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache import layout, writer
from pipeline.cache.captions import StoredCaptions, read_captions
from pipeline.cache.reader import read_manifest
from pipeline.caption_shards import Collected, HeldShard, collect_captions, held_shards
from pipeline.cutting import fitting
from pipeline.errors import CacheError, CacheMismatchError, DataError
from pipeline.frozen.texts import TextFeatureOptions, TextFeatures
from pipeline.options import differences, nearest
from pipeline.runtime import pick_device
from pipeline.shards import Shard
from pipeline.teacher import Teacher
from pipeline.text_tower import TextTower, cached_teacher, embed_means, tell_cuts

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_+-]*")


@dataclass(frozen=True)
class Cut:
    """A caption of which only `kept` characters were embedded; whole, it has `tokens` tokens."""

    caption: int
    kept: int
    tokens: int


@dataclass(frozen=True)
class CaptionsSummary:
    """What a cache holds of a set of captions.

    samples: read, of which `captioned` have a caption. tokens: of the shortest text and the
    longest. cuts: captions of which a part was embedded: what was, and what of how much. encoder:
    the text encoder that embedded them, where the teacher reads no text.
    """

    name: str
    split: str
    captions: int
    samples: int
    captioned: int
    tokens: tuple[int, int]
    left_out: dict[str, int]
    examples: tuple[str, ...]
    cuts: tuple[str, ...]
    encoder: Mapping[str, Any] | None = None

    def as_mapping(self) -> dict[str, Any]:
        """Return the summary as plain values."""
        return asdict(self)

    def line(self) -> str:
        """Say in one line what the set is."""
        left_out = "".join(f", left out {n} ({reason})" for reason, n in self.left_out.items())
        without = self.samples - self.captioned
        read = f"{self.tokens[0]} to {self.tokens[1]} tokens" if self.tokens[1] else "not embedded"
        if self.encoder is not None:
            read += ", embedded by {model} ({layers} layers, {pooling})".format(**self.encoder)
        return (
            f"{self.name}: {self.captions} captions of {self.captioned} samples of {self.split}, "
            f"{read}; {without} samples without{left_out}"
        )

    def text(self) -> str:
        """Say all of it, a line each."""
        examples = [f"  example: {text}" for text in self.examples]
        return "\n".join([self.line(), *examples, *(f"  cut: {text}" for text in self.cuts)])


def add_captions(
    cache: Path,
    shards: Sequence[Shard],
    *,
    split: str = "test",
    name: str | None = None,
    device: str = "auto",
    teacher: str | None = None,
    encoder: TextFeatureOptions | None = None,
) -> bool:
    """Add the captions in a split's shards; return False if the cache has them already.

    shards: all of the split's, as the cache was made from them; others are passed over. name: of
    the set, by default the split's. teacher: the model to load, if the manifest's teacher has
    moved. encoder: what embeds them in place of a teacher that reads no text; those that lie there
    as texts alone are then embedded, and without an encoder either will do. Only captions/ is
    written to; no image is held, and a sealed cache stays sealed. Raises CacheMismatchError if
    shards or teacher are not those of the cache, or if under that name it has other captions, or
    those of another encoder; CacheError while another process writes to the cache, or for an
    encoder beside a teacher that reads text; DataError if there is no caption; StudentError or
    LibraryError for an encoder that cannot be had.
    """
    name = split if name is None else name
    manifest = read_manifest(cache)
    _check_asked(cache, manifest, name, encoder)
    with writer.exclusive(cache):
        writer.sweep(cache)
        held = held_shards(cache, manifest, split, shards)
        features = None if encoder is None else TextFeatures(encoder, pick_device(device))
        there = name in layout.caption_names(cache)
        if there and _is_cached(cache, manifest, name, split, held, features):
            return False
        collected = collect_captions(held)
        if features is not None:
            made = _by_encoder(features, manifest, collected, name=name, split=split)
        elif layout.reads_text(manifest):
            loaded = cached_teacher(cache, manifest, device, teacher)
            made = embedded(loaded, manifest, collected, name=name, split=split)
        else:
            made = plain(manifest, collected, split=split)
        if there:
            writer.drop_captions(cache, name)  # the same, not embedded
        added = writer.publish_captions(cache, name, *made)
        writer.sweep(cache)
        return added


def remade(
    manifest: Mapping[str, Any],
    collected: Collected,
    old: Mapping[str, Any],
    *,
    device: str,
    teacher: Callable[[], Teacher],
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return what is published of damaged captions anew, by whatever embedded them.

    old: their attributes. teacher: loads the cache's own, if it is needed. Raises
    CacheMismatchError if their text encoder is another one by now.
    """
    name, split, was = old["name"], old["split"], old.get("encoder")
    if layout.reads_text(manifest):
        return embedded(teacher(), manifest, collected, name=name, split=split)
    if was is None:
        return plain(manifest, collected, split=split)
    spec = TextFeatureOptions(
        text=was["model"],
        layers=was["layers"],
        pooling=was["pooling"],
        max_tokens=was["max_tokens"],
    )
    features = TextFeatures(spec, pick_device(device))
    if changed := differences(was, features.fingerprint()):
        raise CacheMismatchError(
            f"captions {name!r} were embedded by a text encoder that is another by now; take them "
            "away with `beamclip captions remove` and add them again:",
            changed,
        )
    return _by_encoder(features, manifest, collected, name=name, split=split)


def _check_asked(
    cache: Path, manifest: Mapping[str, Any], name: str, encoder: TextFeatureOptions | None
) -> None:
    """Raise DataError for a name that is none, CacheError for an encoder that has no place."""
    if not _NAME.fullmatch(name):
        raise DataError(f"captions {name!r}: a name may hold letters, digits and _ + - only")
    if encoder is not None and layout.reads_text(manifest):
        raise CacheError(
            f"{cache}: its teacher, {manifest['teacher']['model']}, reads text and embeds captions "
            "itself: leave --text-encoder out"
        )


def remove_captions(cache: Path, name: str) -> None:
    """Take a set of captions out of a cache; raises CacheError if it is not there, or in use."""
    read_manifest(cache)
    known = layout.caption_names(cache)
    if name not in known:
        hint = nearest(name, known) if known else "it has none"
        raise CacheError(f"{cache} has no captions {name!r}: {hint}")
    with writer.exclusive(cache):
        writer.drop_captions(cache, name)
        writer.sweep(cache)


def list_captions(cache: Path) -> list[CaptionsSummary]:
    """Describe every set of captions of a cache, by name; raises CacheError."""
    read_manifest(cache)
    return [show_captions(cache, name) for name in layout.caption_names(cache)]


def show_captions(cache: Path, name: str, *, examples: int = 3) -> CaptionsSummary:
    """Describe one set of captions, with the first ones as examples; raises CacheError."""
    read_manifest(cache)
    stored = read_captions(cache, name)
    return CaptionsSummary(
        name=name,
        split=stored.split,
        captions=stored.counts["captions"],
        samples=stored.counts["samples"],
        captioned=stored.counts["captioned"],
        tokens=(int(stored.token_counts_K.min()), int(stored.token_counts_K.max())),
        left_out=dict(stored.left_out),
        examples=stored.texts[:examples],
        cuts=tuple(_cut_line(stored, cut) for cut in stored.cuts),
        encoder=stored.encoder,
    )


def _cut_line(stored: StoredCaptions, cut: Mapping[str, int]) -> str:
    text, kept = stored.texts[cut["caption"]], int(stored.token_counts_K[cut["caption"]])
    return f"{text[: cut['kept']]!r} ({kept} of {cut['tokens']} tokens)"


def embedded(
    tower: TextTower, manifest: Mapping[str, Any], collected: Collected, *, name: str, split: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Embed captions; return the arrays and attributes that are published of them.

    A caption that is longer than the tower reads is cut, and that is told.
    """
    texts, what = collected.texts, f"captions {name}"
    kept, cuts = _fitted(tower, texts, what)
    lines = [(f"caption {cut.caption}", texts[cut.caption], cut.kept, cut.tokens) for cut in cuts]
    tell_cuts(what, lines, "captions show")
    arrays = {
        "embeddings": embed_means(tower, manifest, [[text] for text in kept], what),
        "texts": np.array(texts, dtype=object),
        "token_counts": np.array([tower.count_tokens(text) for text in kept], np.int32),
        "samples": np.array(collected.samples, np.int64),
    }
    told = {"cuts": [asdict(cut) for cut in cuts]}
    return arrays, _attributes(manifest, split, collected) | told


def _by_encoder(
    features: TextFeatures,
    manifest: Mapping[str, Any],
    collected: Collected,
    *,
    name: str,
    split: str,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays, attributes = embedded(features, manifest, collected, name=name, split=split)
    return arrays, attributes | {"encoder": features.fingerprint()}


def plain(
    manifest: Mapping[str, Any], collected: Collected, *, split: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return what is published of captions for a teacher that reads no text: D and tokens are 0."""
    count = len(collected.texts)
    arrays = {
        "embeddings": np.empty((count, 0), np.float32),
        "texts": np.array(collected.texts, dtype=object),
        "token_counts": np.zeros(count, np.int32),
        "samples": np.array(collected.samples, np.int64),
    }
    return arrays, {**_attributes(manifest, split, collected), "cuts": []}


def _attributes(manifest: Mapping[str, Any], split: str, collected: Collected) -> dict[str, Any]:
    return {
        **_made_from(manifest, split, collected.shards),
        "counts": collected.counts,
        "left_out": dict(sorted(collected.left_out.items())),
    }


def _fitted(tower: TextTower, texts: Sequence[str], what: str) -> tuple[list[str], list[Cut]]:
    """Return the captions as the tower can read them whole, and what was cut off to that end."""
    kept, cuts = list(texts), []
    for place, text in enumerate(texts):
        end = fitting(text, 0, tower.count_tokens, tower.max_tokens)
        if end is None:
            raise DataError(f"{what}: no letter of {text[:60]!r} fits what is read of one")
        if end < len(text):
            kept[place] = text[:end]
            cuts.append(Cut(place, end, tower.count_tokens(text)))
    return kept, cuts


def _is_cached(
    cache: Path,
    manifest: Mapping[str, Any],
    name: str,
    split: str,
    held: Sequence[HeldShard],
    features: TextFeatures | None,
) -> bool:
    """Tell whether captions of this name are these; raises CacheMismatchError if they are others.

    False if a text encoder is to embed them, and none has.
    """
    stored = read_captions(cache, name)
    old: dict[str, Any] = {"split": stored.split, "shards": stored.shards}
    old["teacher"] = stored.teacher_digest
    new = _made_from(manifest, split, held)
    unnamed = {"model": None}  # an encoder may move
    if features is not None and stored.encoder is not None:
        old["encoder"] = {**stored.encoder, **unnamed}
        new["encoder"] = {**features.fingerprint(), **unnamed}
    if changed := differences(old, new):
        raise CacheMismatchError(
            f"{cache} has captions {name!r} of something else; give these another --name, or take "
            "those away with `beamclip captions remove`:",
            changed,
        )
    return features is None or stored.encoder is not None


def _made_from(
    manifest: Mapping[str, Any], split: str, held: Sequence[HeldShard]
) -> dict[str, Any]:
    """Return what decides a set of captions, as its attributes have it."""
    return {
        "split": split,
        "shards": [item.as_mapping() for item in held],
        "teacher": layout.teacher_digest(manifest["teacher"]),
    }
