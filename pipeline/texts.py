"""Embeds prompt sets with the teacher's text tower: the anchors of a cache.

Shape letters: A anchors, T templates, D teacher dimension.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.anchors import cached_anchors
from pipeline.cache import layout, writer
from pipeline.cache.reader import Anchors, read_manifest
from pipeline.cutting import fitting
from pipeline.errors import CacheError, DataError
from pipeline.options import nearest
from pipeline.prompts import PromptSet
from pipeline.teacher import Teacher
from pipeline.text_tower import cached_teacher, embed_means, tell_cuts


@dataclass(frozen=True)
class Cut:
    """A text of which only `kept` characters were embedded; whole, it has `tokens` tokens."""

    anchor: int
    template: int
    kept: int
    tokens: int


def add_anchors(
    cache: Path,
    sets: Sequence[PromptSet],
    *,
    device: str = "auto",
    teacher: str | None = None,
) -> dict[str, bool]:
    """Embed the prompt sets that a cache lacks; return whether each was added.

    teacher: the model to load, if the manifest's teacher has moved. Only anchors/ is written to; no
    image is read, and a sealed cache stays sealed. Raises CacheMismatchError if the teacher at hand
    is not the manifest's, or if under a set's name the cache has other texts; CacheError while
    another process writes to the cache; DataError for a class whose name alone is too long.
    """
    manifest = read_manifest(cache)
    with writer.exclusive(cache):
        writer.sweep(cache)
        lacking = [item for item in sets if not _is_cached(cache, manifest, item)]
        if lacking:
            loaded = cached_teacher(cache, manifest, device, teacher)
            for item in lacking:
                embed_prompt_set(cache, loaded, manifest, item)
    return {item.name: item in lacking for item in sets}


def remove_anchors(cache: Path, name: str) -> None:
    """Take a prompt set out of a cache; raises CacheError if it is not there, or in use."""
    read_manifest(cache)
    known = layout.anchor_names(cache)
    if name not in known:
        raise CacheError(f"{cache} has no anchors {name!r}: {nearest(name, known)}")
    with writer.exclusive(cache):
        writer.drop_anchors(cache, name)
        writer.sweep(cache)


def embed_prompt_set(
    cache: Path, teacher: Teacher, manifest: Mapping[str, Any], prompts: PromptSet
) -> bool:
    """Publish a prompt set's anchors: per anchor the mean over templates, normalised.

    A text that is longer than the teacher reads is cut, and that is told. Returns False if the
    cache has the set already; raises CacheMismatchError if under that name it has other texts.
    """
    if _is_cached(cache, manifest, prompts):
        return False
    anchors = embed_anchors(teacher, manifest, prompts)
    arrays = {
        "embeddings": anchors.embeddings_AD,
        "class_names": np.array(anchors.class_names, dtype=object),
        "texts": np.array(anchors.texts, dtype=object),
        "token_counts": anchors.token_counts_AT,
    }
    attributes = {
        "templates": list(anchors.templates),
        "labelled": anchors.labelled,
        "cuts": list(anchors.cuts),
        "teacher": anchors.teacher_digest,
    }
    return writer.publish_anchors(cache, prompts.name, arrays, attributes)


def embed_anchors(teacher: Teacher, manifest: Mapping[str, Any], prompts: PromptSet) -> Anchors:
    """Return a prompt set's anchors: per anchor the mean over templates, normalised.

    manifest: what a cache's manifest says of `teacher` (its fingerprint) and `batch`. A text that
    is longer than the teacher reads is cut, and that is told.
    """
    kept, cuts = _fitted(teacher, prompts)
    _tell(prompts, cuts)
    embeddings_AD = embed_means(teacher, manifest, kept, f"prompt set {prompts.name}")
    counts_AT = [[teacher.count_tokens(text) for text in texts] for texts in kept]
    return Anchors(
        name=prompts.name,
        embeddings_AD=embeddings_AD,
        class_names=prompts.class_names,
        texts=prompts.texts,
        templates=prompts.templates,
        token_counts_AT=np.array(counts_AT, np.int32),
        teacher_digest=layout.teacher_digest(manifest["teacher"]),
        labelled=prompts.labelled,
        cuts=tuple(asdict(cut) for cut in cuts),
    )


def _fitted(teacher: Teacher, prompts: PromptSet) -> tuple[list[list[str]], list[Cut]]:
    """Return the texts as the teacher can read them whole, and what was cut off to that end."""
    texts = [list(row) for row in prompts.texts]
    cuts = []
    for anchor, row in enumerate(texts):
        for template, text in enumerate(row):
            label_end, names = prompts.label_ends[anchor][template], prompts.names[anchor]
            kept = fitting(text, label_end, teacher.count_tokens, teacher.max_tokens, names=names)
            if kept is None:
                raise DataError(
                    f"prompt set {prompts.name}: {text[:60]!r}... has "
                    f"{teacher.count_tokens(text[:label_end])} tokens up to the end of the class's "
                    f"name, the teacher reads {teacher.max_tokens}: give it a shorter name"
                )
            if kept < len(text):
                row[template] = text[:kept]
                cuts.append(Cut(anchor, template, kept, teacher.count_tokens(text)))
    return texts, cuts


def _tell(prompts: PromptSet, cuts: Sequence[Cut]) -> None:
    lines = [
        (
            repr(prompts.class_names[cut.anchor]),
            prompts.texts[cut.anchor][cut.template],
            cut.kept,
            cut.tokens,
        )
        for cut in cuts
    ]
    tell_cuts(f"prompt set {prompts.name}", lines, "anchors show")


def _is_cached(cache: Path, manifest: Mapping[str, Any], prompts: PromptSet) -> bool:
    if not (cache / "anchors" / prompts.name / "zarr.json").exists():
        return False
    cached_anchors(cache, manifest, prompts)
    return True
