"""Collects what is wrong with a cache; anything that goes wrong on the way is itself a finding."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where in the cache, what, and in which array and view if in one.

    place: relative to the cache. view: the number of the view in its schedule.
    """

    place: str
    what: str
    array: str | None = None
    view: int | None = None

    def text(self) -> str:
        """Return the problem as one line."""
        inside = [self.array, None if self.view is None else f"view {self.view}"]
        return f"{', '.join([self.place, *filter(None, inside)])}: {self.what}"


class Damaged(Exception):
    """Something read is not as it should be; the message is the finding."""


@dataclass
class Findings:
    """The problems found so far, in the order of finding."""

    problems: list[Problem] = field(default_factory=list)

    def add(self, place: str, what: str, array: str | None = None, view: int | None = None) -> None:
        self.problems.append(Problem(place, what, array, view))

    @contextmanager
    def at(self, place: str, array: str | None = None, view: int | None = None) -> Iterator[None]:
        """Run a block that reads what may be garbage; whatever it raises becomes a problem."""
        try:
            yield
        except Damaged as damage:
            self.add(place, str(damage), array, view)
        except Exception as error:  # garbage makes JSON, zarr, codecs and numpy raise any kind
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self.add(place, f"cannot be read ({reason[:300]})", array, view)
