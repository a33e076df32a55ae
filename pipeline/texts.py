"""Embeds prompt sets with the teacher's text tower: the anchors of a cache.

Shape letters: A classes, T templates, D teacher dimension.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import runtime
from pipeline.anchors import cached_anchors
from pipeline.cache import layout, writer
from pipeline.cache.reader import read_manifest
from pipeline.errors import CacheMismatchError, DataError
from pipeline.options import differences
from pipeline.prompts import PromptSet, load_prompts, prompt_set
from pipeline.teacher import HF_HUB, LOCAL_DIR, Teacher, TeacherOptions, check_teacher, load_teacher


def add_anchors(
    cache: Path,
    prompts_file: str,
    names: Sequence[str] | None = None,
    *,
    device: str = "auto",
    teacher: str | None = None,
) -> dict[str, bool]:
    """Embed the sets of a prompt file that a cache lacks; return whether each was added.

    names: of the file's sets, by default all. teacher: the model to load, if the manifest's teacher
    has moved. Only anchors/ is written to; no image is read, and a sealed cache stays sealed.
    Raises CacheMismatchError if the teacher at hand is not the manifest's, or if under a set's name
    the cache has other texts; DataError for the prompt file; CacheError while another process
    writes to the cache.
    """
    prompts = load_prompts(prompts_file)
    sets = [prompt_set(prompts, name) for name in names or prompts.prompt_sets]
    manifest = read_manifest(cache)
    with writer.exclusive(cache):
        writer.sweep(cache)
        lacking = [item for item in sets if not _is_cached(cache, manifest, item)]
        if lacking:
            loaded = _teacher_of(cache, manifest, device, teacher)
            for item in lacking:
                embed_prompt_set(cache, loaded, manifest, item)
    return {item.name: item in lacking for item in sets}


def embed_prompt_set(
    cache: Path, teacher: Teacher, manifest: Mapping[str, Any], prompts: PromptSet
) -> bool:
    """Publish a prompt set's anchors: per class the mean over templates, normalised.

    Returns False if the cache has it already; raises CacheMismatchError if under that name it has
    other texts, DataError for texts that the teacher would cut.
    """
    if _is_cached(cache, manifest, prompts):
        return False
    token_counts = _count_tokens(teacher, prompts)
    with runtime.torch_threads(manifest["batch"]["threads"]):
        embeddings_AD = np.stack(
            [teacher.embed_texts(texts).numpy().mean(axis=0) for texts in prompts.texts]
        )
    embeddings_AD /= np.linalg.norm(embeddings_AD, axis=1, keepdims=True)
    if not np.isfinite(embeddings_AD).all():
        raise DataError(f"prompt set {prompts.name}: the teacher gave a vector that is not finite")
    arrays = {
        "embeddings": embeddings_AD.astype(np.float32),
        "class_names": np.array(prompts.class_names, dtype=object),
        "texts": np.array(prompts.texts, dtype=object),
        "token_counts": token_counts,
    }
    attributes = {
        "templates": list(prompts.templates),
        "teacher": layout.teacher_digest(manifest["teacher"]),
    }
    return writer.publish_anchors(cache, prompts.name, arrays, attributes)


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


def _count_tokens(teacher: Teacher, prompts: PromptSet) -> np.ndarray:
    """Count tokens per text, int32 [A,T]; a text that would be cut silently is an error."""
    counts_AT = np.array(
        [[teacher.count_tokens(text) for text in texts] for texts in prompts.texts], np.int32
    )
    cut = np.argwhere(counts_AT > teacher.max_tokens)
    if len(cut):
        place, template = cut[0]
        text, more = prompts.texts[place][template], len(cut) - 1
        raise DataError(
            f"prompt set {prompts.name}: {text[:60]!r}... has {counts_AT[place, template]} tokens, "
            f"the teacher reads {teacher.max_tokens}"
            + (f" (and {more} more texts)" if more else "")
            + ": shorten the description"
        )
    return counts_AT
