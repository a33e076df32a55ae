"""Embeds prompt sets with the teacher's text tower: the anchors of a cache.

Shape letters: A anchors, T templates, D teacher dimension.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import runtime
from pipeline.anchors import cached_anchors
from pipeline.cache import layout, writer
from pipeline.cache.reader import read_manifest
from pipeline.cutting import fitting
from pipeline.errors import CacheError, CacheMismatchError, DataError
from pipeline.options import differences, nearest
from pipeline.prompts import PromptSet
from pipeline.teacher import HF_HUB, LOCAL_DIR, Teacher, TeacherOptions, check_teacher, load_teacher

_BATCH = 256  # texts in one forward pass
_SHOWN = 20  # cuts that are logged, of one set
_log = logging.getLogger(__name__)


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
            loaded = _teacher_of(cache, manifest, device, teacher)
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
    kept, cuts = _fitted(teacher, prompts)
    _tell(prompts, cuts)
    with runtime.torch_threads(manifest["batch"]["threads"]):
        embeddings_AD = _embed(teacher, kept)
    if not np.isfinite(embeddings_AD).all():
        raise DataError(f"prompt set {prompts.name}: the teacher gave a vector that is not finite")
    counts_AT = [[teacher.count_tokens(text) for text in texts] for texts in kept]
    arrays = {
        "embeddings": embeddings_AD,
        "class_names": np.array(prompts.class_names, dtype=object),
        "texts": np.array(prompts.texts, dtype=object),
        "token_counts": np.array(counts_AT, np.int32),
    }
    attributes = {
        "templates": list(prompts.templates),
        "labelled": prompts.labelled,
        "cuts": [asdict(cut) for cut in cuts],
        "teacher": layout.teacher_digest(manifest["teacher"]),
    }
    return writer.publish_anchors(cache, prompts.name, arrays, attributes)


def _embed(teacher: Teacher, texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Return float32 [A,D]: the mean of an anchor's normalised texts, normalised."""
    each = len(texts[0])
    at_once = max(1, _BATCH // each)  # anchors
    blocks_AD = []
    for begin in range(0, len(texts), at_once):
        block = texts[begin : begin + at_once]
        flat = teacher.embed_texts([text for row in block for text in row]).numpy()
        blocks_AD.append(flat.reshape(len(block), each, -1).mean(axis=1))
    embeddings_AD = np.concatenate(blocks_AD)
    embeddings_AD /= np.linalg.norm(embeddings_AD, axis=1, keepdims=True)
    return embeddings_AD.astype(np.float32)


def _fitted(teacher: Teacher, prompts: PromptSet) -> tuple[list[list[str]], list[Cut]]:
    """Return the texts as the teacher can read them whole, and what was cut off to that end."""
    texts = [list(row) for row in prompts.texts]
    cuts = []
    for anchor, row in enumerate(texts):
        for template, text in enumerate(row):
            label_end = prompts.label_ends[anchor][template]
            kept = fitting(text, label_end, teacher.count_tokens, teacher.max_tokens)
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
    for cut in cuts[:_SHOWN]:
        text = prompts.texts[cut.anchor][cut.template]
        _log.warning(
            "prompt set %s: %r has %d tokens and was cut after %r",
            *(prompts.name, prompts.class_names[cut.anchor], cut.tokens),
            text[max(0, cut.kept - 40) : cut.kept],
        )
    if len(cuts) > _SHOWN:
        _log.warning("... and %d more texts were cut: see `anchors show`", len(cuts) - _SHOWN)


def _is_cached(cache: Path, manifest: Mapping[str, Any], prompts: PromptSet) -> bool:
    if not (cache / "anchors" / prompts.name / "zarr.json").exists():
        return False
    cached_anchors(cache, manifest, prompts)
    return True


def _teacher_of(
    cache: Path, manifest: Mapping[str, Any], device: str, moved: str | None
) -> Teacher:
    """Load the manifest's teacher; raises CacheMismatchError if it is another by now."""
    named, batch = manifest["teacher"], manifest["batch"]
    model = moved or named["model"]
    spec = TeacherOptions(
        model=model,
        pretrained=None if model.startswith((LOCAL_DIR, HF_HUB)) else named["pretrained"],
        precision=named["precision"],
        batch_size=batch["size"],
        threads=batch["threads"],
    )
    check_teacher(spec)
    teacher = load_teacher(spec, runtime.pick_device(device))
    found = teacher.fingerprint()
    if layout.teacher_digest(found) != layout.teacher_digest(named):
        raise CacheMismatchError(
            f"the teacher {model} is not the one that {cache} was made with; anchors of two "
            "teachers cannot be compared, nothing was touched:",
            differences({"teacher": named}, {"teacher": found}),
        )
    return teacher
