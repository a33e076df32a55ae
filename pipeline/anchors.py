"""Finds the cached anchors of a prompt set, and holds them against its texts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.cache import layout
from pipeline.cache.reader import Anchors, read_anchors
from pipeline.errors import CacheMismatchError
from pipeline.options import differences
from pipeline.prompts import PromptSet


def cached_anchors(cache: Path, manifest: Mapping[str, Any], prompts: PromptSet) -> Anchors:
    """Return the anchors that a cache, sealed or not, holds for a prompt set.

    Raises CacheError if it has none of that name, CacheMismatchError listing every class name and
    text that is not as it was embedded (classes reordered, labels or context edited), or if another
    teacher than the manifest's had embedded them.
    """
    anchors = read_anchors(cache, prompts.name)
    teacher = layout.teacher_digest(manifest["teacher"])
    if anchors.teacher_digest != teacher:
        raise CacheMismatchError(
            f"{cache} has anchors {prompts.name!r} of another teacher; remove their folder and run "
            "teacher-cache again:",
            [("teacher", anchors.teacher_digest, teacher)],
        )
    old = {"class_names": anchors.class_names, "texts": anchors.texts}
    new = {"class_names": prompts.class_names, "texts": prompts.texts}
    if changed := differences(old, new):
        raise CacheMismatchError(
            f"{cache} has anchors {prompts.name!r} from other prompts; put the prompt file back, "
            "or give the edited set another name:",
            changed,
        )
    return anchors
