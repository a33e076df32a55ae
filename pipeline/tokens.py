"""Captions of a split as a student reads them: tokenised once per machine, mapped into memory.

Shape letters: B batch, K captions, L places of a text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

import numpy as np

from pipeline.cache.captions import Captions
from pipeline.cache.scratch import shared_array
from pipeline.contracts import TokenBatch

_AT_ONCE = 4096  # captions


class Reader(Protocol):
    """What turns texts into tokens; its digest tells it from any other that would do it otherwise.

    max_tokens: L, to which every text is padded or cut.
    """

    max_tokens: int

    @property
    def digest(self) -> str:
        """All that decides the tokens of a text, hashed."""

    def tokenise(self, texts: Sequence[str]) -> np.ndarray:
        """Return int32 [K,L]."""

    def batch(self, tokens_BL: np.ndarray) -> TokenBatch:
        """Return tokens as a student takes them."""


@dataclass(frozen=True)
class TokenisedTexts:
    """The captions whose rows have targets.

    rows_K: int64, the row of the split that each tells of. tokens_KL: int32, mapped into memory.
    """

    rows_K: np.ndarray
    tokens_KL: np.ndarray
    reader: Reader

    def batch(self, items_B: np.ndarray) -> TokenBatch:
        """Return some captions, by their places among the K."""
        return self.reader.batch(np.asarray(self.tokens_KL[items_B]))


def tokenised(captions: Captions, reader: Reader) -> TokenisedTexts:
    """Tokenise the captions of a split that tell of a row with targets."""
    kept_K = np.flatnonzero(captions.valid_K)
    texts = [captions.texts[place] for place in kept_K.tolist()]
    tokens_KL = shared_array(
        _name(texts, reader), (len(texts), reader.max_tokens), "int32", _pieces(texts, reader)
    )
    return TokenisedTexts(captions.rows_K[kept_K], tokens_KL, reader)


def _pieces(texts: Sequence[str], reader: Reader) -> Iterator[np.ndarray]:
    for begin in range(0, len(texts), _AT_ONCE):
        yield reader.tokenise(texts[begin : begin + _AT_ONCE])


def _name(texts: Sequence[str], reader: Reader) -> str:
    digest = sha256(reader.digest.encode())
    for text in texts:
        digest.update(f"{len(text)}:".encode() + text.encode())
    return f"{digest.hexdigest()[:32]}-tokens"
