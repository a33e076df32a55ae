"""Finds the images nearest to a text, as grids of the first five (BeamCLIP, Fig. 3).

Shape letters: N test rows, D teacher dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.cache.reader import Anchors
from pipeline.contracts import Features
from pipeline.errors import ProbeError
from pipeline.options import nearest
from pipeline.report.classes import recalls
from pipeline.report.seen import Ground, Seen
from pipeline.templates import as_read

TOP = 5


@dataclass(frozen=True)
class Prompt:
    """A text that the cache holds an anchor for. label: the class it asks for, None if of no class.

    texts: how many texts the anchor averages.
    """

    text: str
    source: str  # the prompt set
    anchor_D: np.ndarray
    label: int | None
    texts: int


@dataclass(frozen=True)
class Hit:
    """One image found. right: None where nothing says what the text asks for."""

    row: int
    name: str
    right: bool | None


@dataclass(frozen=True)
class Answers:
    """The first five images of one prompt for one encoder."""

    encoder: str
    hits: tuple[Hit, ...]

    @property
    def right(self) -> int:
        """How many of them are right."""
        return sum(hit.right is True for hit in self.hits)


def find_prompt(ground: Ground, wanted: str) -> Prompt:
    """Return the cached anchor whose text or class name this is; raises ProbeError without one.

    No text tower runs here: a text that no set has embedded is added with `beamclip anchors add`.
    """
    read = as_read(wanted)
    for words in (_texts, _names):
        for item in ground.every_set:
            for place, known in enumerate(words(item)):
                if read in known:
                    return _prompt(ground, item, place)
    names = ground.zeroshot.class_names
    hint = nearest(wanted, names)
    if "did you mean" not in hint:
        hint = f"any class serves, such as {names[0]!r}, and any of their texts"
    raise ProbeError(
        f"no prompt set of {ground.cache.path} holds {wanted!r}: {hint}. To add a text, write it "
        "as a class of a prompt file and run `beamclip anchors add`"
    )


def chosen_prompts(seen: Sequence[Seen], most: int = 6) -> list[Prompt]:
    """Return the prompts of the classes that the students find hardest, hardest first."""
    ground = seen[0].ground
    classes = len(ground.zeroshot.class_names)
    if not (ground.labels_N >= 0).any():
        return [_prompt(ground, ground.zeroshot, place) for place in range(min(classes, most))]
    recalls_C = np.mean([recalls(ground.labels_N, one.said_N, classes) for one in seen], axis=0)
    order = np.argsort(recalls_C, kind="stable")  # NaN, a class without images, is last
    return [_prompt(ground, ground.zeroshot, int(c)) for c in order[:most] if recalls_C[c] >= 0]


def answers(encoder: str, features: Features, ground: Ground, prompt: Prompt) -> Answers:
    """Return the five images nearest to a prompt; between equal ones the lower row is first."""
    cosine_N = features.embedding_ND @ prompt.anchor_D
    names = ground.zeroshot.class_names
    hits = []
    for place in np.argsort(-cosine_N, kind="stable")[:TOP]:
        label = int(features.labels_N[place])
        known = label >= 0 and prompt.label is not None
        hits.append(
            Hit(
                row=int(features.rows_N[place]),
                name=names[label] if 0 <= label < len(names) else "no label",
                right=label == prompt.label if known else None,
            )
        )
    return Answers(encoder, tuple(hits))


def _prompt(ground: Ground, item: Anchors, place: int) -> Prompt:
    texts, name = item.texts[place], item.class_names[place]
    labels = {as_read(known): i for i, known in enumerate(ground.zeroshot.class_names)}
    return Prompt(
        text=texts[0],
        source=item.name,
        anchor_D=item.embeddings_AD[place],
        label=labels.get(as_read(name)),
        texts=len(texts),
    )


def _texts(item: Anchors) -> list[set[str]]:
    return [{as_read(text) for text in row} for row in item.texts]


def _names(item: Anchors) -> list[set[str]]:
    return [{as_read(name)} for name in item.class_names]
