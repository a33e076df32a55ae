"""Collects what is wrong with a cache; anything that goes wrong on the way is itself a finding."""

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

    def __post_init__(self) -> None:
        self._seen = set(self.problems)

    def add(self, place: str, what: str, array: str | None = None, view: int | None = None) -> None:
        """Add a problem, once: two checks may come upon the same one."""
        problem = Problem(place, what, array, view)
        if problem not in self._seen:
            self._seen.add(problem)
            self.problems.append(problem)

    def at(self, place: str, array: str | None = None, view: int | None = None) -> "_At":
        """Run a block that reads what may be garbage; whatever it raises becomes a problem."""
        return _At(self, place, array, view)


@dataclass(frozen=True)
class _At:
    findings: Findings
    place: str
    array: str | None
    view: int | None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        # Garbage makes JSON, zarr, codecs and numpy raise any kind.
        reason = str(error) if isinstance(error, Damaged) else f"cannot be read ({told(error)})"
        self.findings.add(self.place, reason, self.array, self.view)
        return True


def told(error: Exception) -> str:
    """Return an error of any kind as part of one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
