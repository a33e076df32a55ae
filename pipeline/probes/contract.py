"""What a probe is given, and what it gives back.

Shape letters: N rows of a split.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.cache.captions import Captions
from pipeline.cache.reader import Anchors
from pipeline.contracts import Features
from pipeline.errors import ProbeError

# What a probe cannot do without, beside the test rows.
Need = Literal["train", "anchors", "captions", "teacher"]


@dataclass(frozen=True)
class Subject:
    """One frozen encoder, as probes see it: its features of each split, and what goes with them.

    train: for probes that learn; val: of the split of that name, if there is one, to choose by.
    anchors, captions: texts in the space of its embedding; captions are of the test rows.
    teacher: the teacher's features of the same test rows, in the same order.
    """

    test: Features
    train: Features | None = None
    val: Features | None = None
    anchors: Anchors | None = None
    captions: Captions | None = None
    teacher: Features | None = None

    def need(self, name: Need) -> Any:
        """Return a part that a probe cannot do without; raises ProbeError if it is not there."""
        found = getattr(self, name)
        if found is None:
            raise ProbeError(f"the probe needs {WHAT[name]}")
        return found


# What each need is, for messages.
WHAT: Mapping[str, str] = {
    "train": "labelled train samples",
    "anchors": "a prompt set of the test samples' classes",
    "captions": "captions of the test samples: `beamclip captions add`",
    "teacher": "the teacher's targets of the test samples: a cache of them",
}


@dataclass(frozen=True)
class Result:
    """Scores: {name: value}, for tables. Details: what else is worth keeping, as plain JSON."""

    scores: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Probe:
    """One evaluation: run(subject, options of its own) -> Result; raises ProbeError.

    headline: the score of it that tables show first. also: those that they show before it, where
    there are any. needs: what it cannot do without. one_of: of
    these, one at least. takes: what it looks at besides, if it is there. by_chance: whether always
    naming the commonest class says what its headline is by chance.
    """

    run: Callable[[Subject, Any], Result]
    headline: str
    also: tuple[str, ...] = field(default=(), kw_only=True)
    needs: frozenset[Need] = frozenset()
    takes: frozenset[Need] = frozenset()
    one_of: frozenset[Need] = frozenset()
    by_chance: bool = True
