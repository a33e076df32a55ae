"""Cuts texts that are longer than a teacher reads: at a sentence's end, never inside the label."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

_SENTENCE_END = re.compile(r"[.!?\u2026\u3002]+[\"')\]\u201d\u2019]*(?=\s)|\u3002")
_WORD_END = re.compile(r"(?<=\S)(?=\s)")
# A full stop after these ends no sentence: initials, titles, what botanists and lists abbreviate.
_ABBREVIATED = re.compile(
    r"(?<!\w)([A-Z]|Mt|St|Dr|Mr|Mrs|Ms|Prof|Jr|Sr|No"
    r"|(?i:ca?|cf|e\.\s?g|i\.\s?e|[ei]|viz|vs|approx|incl|var|subsp|ssp|spp?|cv|syn))\.$"
)


def fitting(
    text: str,
    label_end: int,
    count_tokens: Callable[[str], int],
    most: int,
    *,
    names: Collection[str] = (),
) -> int | None:
    """Return how many characters of a text to keep, so that it has at most `most` tokens.

    All of them if that fits, else up to the last end of a sentence that fits; where there is none,
    of a word, or of a letter if that keeps twice as much (a script without spaces). Never less than
    `label_end`: None if that alone has too many tokens. names: what is never cut inside, wherever
    it stands; a full stop right after one ends a sentence.
    """
    if count_tokens(text) <= most:
        return len(text)
    spans = list(_spans(text, names))

    def last(places: Iterable[int]) -> int | None:
        return _last_fitting(
            [
                place
                for place in places
                if place == label_end
                or (place > label_end and not any(a < place < b for a, b in spans))
            ],
            lambda place: count_tokens(text[:place]) <= most,
        )

    if sentence := last(_sentence_ends(text, {end for _, end in spans})):
        return sentence
    letter = last(range(1, len(text)))
    word = last(found.end() for found in _WORD_END.finditer(text))
    return word if word is not None and letter is not None and 2 * word > letter else letter


def _spans(text: str, names: Collection[str]) -> Iterator[tuple[int, int]]:
    """Yield where names begin and end in a text, whatever their case."""
    for name in names:
        for found in re.finditer(f"(?=({re.escape(name)}))", text, re.IGNORECASE):
            yield found.span(1)


def _sentence_ends(text: str, names_end: Collection[int]) -> Iterator[int]:
    for found in _SENTENCE_END.finditer(text):
        before = text[max(0, found.start() - 12) : found.end()]
        if found.start() in names_end or not _ABBREVIATED.search(before):
            yield found.end()


def _last_fitting(places: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """Return the last of ascending places that fits, by halving; None if the first does not."""
    low, high = 0, len(places)  # all before `low` fit, none from `high` on
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if fits(places[middle]) else (low, middle)
    return places[low - 1] if low else None
