"""ImageNet's classes, as the installed libraries know them: ids, names, glosses and templates."""

from collections.abc import Sequence
from typing import Any

from pipeline.errors import LibraryError

# open_clip calls two classes missile and two sunglasses; one of each has WordNet's name here.
_OWN_NAMES = {"n04008634": "projectile", "n04355933": "sunglass"}


def synsets(subset: str = "imagenet-1k") -> tuple[str, ...]:
    """Return the WordNet ids ("n01440764") of a subset in the order of its labels, from timm.

    subset: imagenet-1k, or imagenet-22k for the 21,841 of the fall-2011 release.
    """
    return tuple(_info(subset).label_names())


def class_names() -> tuple[str, ...]:
    """Return the 1,000 names that CLIP was scored with, in the order of the labels, by open_clip.

    Each is there once: of the two that stand twice in open_clip's list, one has another name.
    """
    named = zip(synsets(), _open_clip().IMAGENET_CLASSNAMES, strict=True)
    return tuple(_OWN_NAMES.get(wnid, name) for wnid, name in named)


def templates() -> tuple[str, ...]:
    """Return the 80 templates that CLIP was scored with, {label} for the class, by open_clip."""
    mark = "\0"
    filled = [template(mark) for template in _open_clip().OPENAI_IMAGENET_TEMPLATES]
    return tuple(
        text.replace("{", "{{").replace("}", "}}").replace(mark, "{label}") for text in filled
    )


def glosses(wnids: Sequence[str]) -> tuple[str, ...]:
    """Return WordNet's definition of each id, from timm: what comes after the names."""
    info = _info("imagenet-22k")
    return tuple(
        info.label_name_to_description(wnid, detailed=True).partition(": ")[2] for wnid in wnids
    )


def _info(subset: str) -> Any:
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        raise _missing("timm") from None
    return ImageNetInfo(subset)


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError:
        raise _missing("open_clip_torch") from None
    return open_clip


def _missing(package: str) -> LibraryError:
    return LibraryError(f"ImageNet's classes are read from {package}, which is not installed")
