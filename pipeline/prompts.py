"""Turns a prompt file into prompt sets: the texts that stand for each class.

Shape letters: A anchors, T templates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from pipeline.errors import DataError
from pipeline.options import nearest, options
from pipeline.prompt_file import ClassPrompt, PromptFile, TemplateSet, load_prompts
from pipeline.templates import Filled, as_read, fields_of, fill


@options
class PromptOptions:
    """Which prompt file a cache is made with, and which sets serve for what.

    anchors, zeroshot: sets of the file, or, in stage two, any prompt set of the cache by its whole
    name; without `anchors` that of `zeroshot` serves for both. descriptions: a file of the user's
    own, as `anchors add --descriptions` takes.
    """

    file: str  # a name under prompts/, or a path to a YAML file
    anchors: str | None = None  # the set whose embeddings are the anchors of training
    zeroshot: str  # the set whose embeddings classify in the zero-shot probe
    descriptions: str | None = None

    @property
    def uses(self) -> dict[str, str]:
        """The sets by what they serve for."""
        return {"anchors": self.anchors or self.zeroshot, "zeroshot": self.zeroshot}


@dataclass(frozen=True)
class PromptSet:
    """The texts of a set of anchors: texts[anchor][template], averaged over the templates.

    label_ends[anchor][template]: where the class's name ends in the text. names[anchor]: the names
    of its class, which are never cut in two. labelled: whether anchor i stands for label i, which
    the zero-shot probe asks for.
    """

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    label_ends: tuple[tuple[int, ...], ...]
    names: tuple[tuple[str, ...], ...]
    labelled: bool = True


def load_sets(
    file: str, names: Sequence[str] | None = None, descriptions: str | None = None
) -> list[PromptSet]:
    """Return sets of a prompt file, by default all; raises DataError."""
    prompts = load_prompts(file, descriptions)
    return [prompt_set(prompts, name) for name in names or prompts.prompt_sets]


def prompt_set(prompts: PromptFile, name: str) -> PromptSet:
    """Fill in the templates of one set; raises DataError for a field that a class lacks."""
    if name not in prompts.prompt_sets:
        hint = nearest(name, prompts.prompt_sets)
        raise DataError(f"prompts for {prompts.dataset} have no set {name!r}: {hint}")
    chosen = prompts.prompt_sets[name]
    if not chosen.templates:
        raise DataError(f"prompt set {name!r} of {prompts.dataset} has no template")
    for template in chosen.templates:
        fields_of(template)
    filled_AT = [
        [_fill(template, item) for template in chosen.templates] for item in prompts.classes
    ]
    _check_texts(prompts.classes, chosen.templates, filled_AT)
    return _as_anchors(f"{prompts.dataset}-{name}", prompts.classes, chosen, filled_AT)


def sampled(prompts: PromptSet, count: int, seed: int) -> PromptSet:
    """Return a random subset of the classes, in their order (BeamCLIP, Fig. 4).

    Which ones is a function of their names and the seed alone, and of two counts the smaller
    subset lies in the larger. Raises DataError if there are not so many classes.
    """
    names = list(dict.fromkeys(prompts.class_names))
    if not 0 < count < len(names):
        raise DataError(
            f"a sample of {prompts.name} takes 1 to {len(names) - 1} of its {len(names)} classes, "
            f"not {count}"
        )
    chosen = set(sorted(names, key=lambda name: _lot(name, seed))[:count])
    places = [i for i, name in enumerate(prompts.class_names) if name in chosen]
    return replace(
        prompts,
        name=f"{prompts.name}.{count}of{len(names)}-seed{seed}",
        class_names=tuple(prompts.class_names[i] for i in places),
        texts=tuple(prompts.texts[i] for i in places),
        label_ends=tuple(prompts.label_ends[i] for i in places),
        names=tuple(prompts.names[i] for i in places),
        labelled=False,
    )


def _lot(name: str, seed: int) -> bytes:
    return blake2b(f"{seed} {name}".encode("utf-8", "surrogateescape")).digest()


def _fill(template: str, item: ClassPrompt) -> Filled:
    return fill(
        template,
        {
            "label": item.name,
            "synonym": item.synonyms[0] if item.synonyms else item.name,
            "coarse": item.coarse,
            "description": item.description,
            "article": item.article,
        },
    )


def _as_anchors(
    name: str,
    classes: Sequence[ClassPrompt],
    chosen: TemplateSet,
    filled_AT: Sequence[Sequence[Filled]],
) -> PromptSet:
    """Make one anchor of a class's texts, or one of each."""
    separate = chosen.anchors == "separate" and len(chosen.templates) > 1
    rows = [[one] for filled_T in filled_AT for one in filled_T] if separate else filled_AT
    each = len(chosen.templates) if separate else 1
    return PromptSet(
        name=name,
        class_names=tuple(item.name for item in classes for _ in range(each)),
        templates=chosen.templates,
        texts=tuple(tuple(one.text for one in filled_T) for filled_T in rows),
        label_ends=tuple(tuple(one.label_end for one in filled_T) for filled_T in rows),
        names=tuple((item.name, *item.synonyms[:1]) for item in classes for _ in range(each)),
        labelled=not separate,
    )


def _check_texts(
    classes: Sequence[ClassPrompt],
    templates: Sequence[str],
    filled_AT: Sequence[Sequence[Filled]],
) -> None:
    """Refuse a template in which two classes, though their names differ, get the same text."""
    for place, template in enumerate(templates):
        seen: dict[str, str] = {}
        for item, filled_T in zip(classes, filled_AT, strict=True):
            text = filled_T[place].text
            other = seen.setdefault(as_read(text), item.name)
            if other != item.name:
                raise DataError(
                    f"template {template!r} gives {other!r} and {item.name!r} the same text "
                    f"{text!r}: no image could be told apart by it"
                )
