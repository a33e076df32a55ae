"""Has a text tower embed texts, in batches: a cache's own teacher, or what is named in its place.

Shape letters: A anchors or captions, D dimension of the tower.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline import runtime
from pipeline.cache import layout
from pipeline.errors import CacheError, CacheMismatchError, DataError
from pipeline.options import differences
from pipeline.teacher import HF_HUB, LOCAL_DIR, Teacher, TeacherOptions, check_teacher, load_teacher

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 256  # texts in one forward pass
_SHOWN = 20  # cuts that are logged, of one set
_log = logging.getLogger(__name__)


class TextTower(Protocol):
    """What embeds texts: a teacher that reads them, or a text encoder."""

    @property
    def dim(self) -> int:
        """The size of an embedding."""

    @property
    def max_tokens(self) -> int:
        """How many tokens of a text it reads, marks of start and end included."""

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a text, uncut, marks of start and end included."""

    def embed_texts(self, texts: Sequence[str]) -> "Tensor":
        """Embed texts: float32 [A,D], normalised, on the CPU."""


def embed_means(
    tower: TextTower, manifest: Mapping[str, Any], texts: Sequence[Sequence[str]], what: str
) -> np.ndarray:
    """Return float32 [A,D]: the mean of each row's normalised texts, normalised.

    Every row has as many texts, none longer than the teacher reads. what: names them in the error
    (DataError) of a vector that is not finite. Beside the result, memory holds one batch.
    """
    each = len(texts[0])
    at_once = max(1, _BATCH // each)  # rows
    embeddings_AD = np.empty((len(texts), tower.dim), np.float32)
    with (
        runtime.torch_threads(manifest["batch"]["threads"]),
        runtime.progress(f"embedding {what}", len(texts) * each, "texts") as advance,
    ):
        for begin in range(0, len(texts), at_once):
            block = texts[begin : begin + at_once]
            flat = tower.embed_texts([text for row in block for text in row]).numpy()
            mean_AD = flat.reshape(len(block), each, -1).mean(axis=1)
            mean_AD /= np.linalg.norm(mean_AD, axis=1, keepdims=True)
            embeddings_AD[begin : begin + len(block)] = mean_AD
            advance(len(block) * each)
    if not np.isfinite(embeddings_AD).all():
        raise DataError(f"{what}: the model gave a vector that is not finite")
    return embeddings_AD


def tell_cuts(what: str, cuts: Sequence[tuple[str, str, int, int]], command: str) -> None:
    """Log the first of the texts that were cut.

    cuts: (whose text, the text, characters kept, tokens of the whole). command: lists all of them.
    """
    for whose, text, kept, tokens in cuts[:_SHOWN]:
        ending = text[max(0, kept - 40) : kept]
        _log.warning("%s: %s has %d tokens and was cut after %r", what, whose, tokens, ending)
    if len(cuts) > _SHOWN:
        _log.warning("... and %d more texts were cut: see `%s`", len(cuts) - _SHOWN, command)


def cached_teacher(
    cache: Path, manifest: Mapping[str, Any], device: str, moved: str | None
) -> Teacher:
    """Load the manifest's teacher; raises CacheMismatchError if it is another by now.

    moved: the model to load, if it lies elsewhere than the manifest says. Raises CacheError if the
    teacher reads no text.
    """
    named, batch = manifest["teacher"], manifest["batch"]
    if not layout.reads_text(manifest):
        raise CacheError(f"{cache}: its teacher, {named['model']}, sees images and reads no text")
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
            f"the teacher {model} is not the one that {cache} was made with; texts of two teachers "
            "cannot be compared, nothing was touched:",
            differences({"teacher": named}, {"teacher": found}),
        )
    return teacher
