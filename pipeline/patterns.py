"""Expands patterns of shards into locations: braces, globs, folders and lists."""

import itertools
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from pipeline import storage
from pipeline.errors import ShardError

SPLITS = ("train", "val", "test")
MOST_NAMES = 1_000_000  # of one pattern; a slip of the finger must not fill the memory
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")


def expand(pattern: str, allowed: Collection[str]) -> Iterator[tuple[str | None, str]]:
    """Yield (split or None, location) for all that one pattern names, whether it exists or not.

    allowed: the stores (`s3`, ...) that shards may be read from. Raises ShardError for a pattern
    that cannot be understood or is not allowed, OSError if a store cannot be listed.
    """
    return _expand(pattern, allowed, ())


def _expand(
    pattern: str, allowed: Collection[str], lists: tuple[str, ...]
) -> Iterator[tuple[str | None, str]]:
    """Expand a pattern, found in the `lists` that led to it."""
    split, equals, rest = pattern.partition("=")
    if not (equals and split in SPLITS):
        split, rest = "", pattern
    if rest.startswith("@"):
        for line in _lines(rest, lists):
            for own, location in _expand(line, allowed, (*lists, rest)):
                yield own or split or None, location
        return
    storage.check_allowed(rest, allowed)
    for name in _names(rest):
        for location in storage.matches(name):
            yield split or None, location


def _names(pattern: str) -> Iterator[str]:
    """Yield what the braces of a pattern stand for."""
    if "{" not in pattern and "}" not in pattern and "\\" not in pattern:
        yield pattern
        return
    from braceexpand import braceexpand

    spans = [abs(int(last) - int(first)) for first, last in _RANGE.findall(pattern)]
    try:
        names = braceexpand(pattern) if max(spans, default=0) < MOST_NAMES else iter(())
        found = list(itertools.islice(names, MOST_NAMES + 1))
    except ValueError:
        raise ShardError(f"unbalanced braces in {pattern!r}") from None
    if not 0 < len(found) <= MOST_NAMES:
        raise ShardError(f"{pattern!r} stands for more than {MOST_NAMES} names: is it meant so?")
    yield from found


def _lines(name: str, lists: tuple[str, ...]) -> list[str]:
    """Return the patterns in the list `name` (with its @): its lines, but empty ones and # ones.

    A line means what it would on the command line: relative paths start where the command does.
    """
    if name in lists:
        raise ShardError(f"the list of shards {name[1:]} names itself")
    try:
        text = Path(name[1:]).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ShardError(f"cannot read the list of shards {name[1:]}: {error}") from None
    # Not splitlines: a name may hold what Unicode calls the end of a line.
    patterns = [line for part in text.split("\n") if (line := part.strip(" \t\r"))]
    patterns = [line for line in patterns if not line.startswith("#")]
    if not patterns:
        raise ShardError(f"the list of shards {name[1:]} is empty")
    return patterns
