"""Turns texts into the tokens of a text encoder.

Shape letters: K texts, B batch, L places of a text.
"""

import os
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.contracts import TokenBatch
from pipeline.errors import StudentError
from pipeline.shared.contract import SharedOptions
from pipeline.shared.files import TextFiles, find_text_files

if TYPE_CHECKING:
    from tokenizers import Encoding

_AT_ONCE = 4096  # texts


class TextReader:
    """The tokenizer of a text encoder, at a fixed number of places."""

    def __init__(self, files: TextFiles, max_tokens: int) -> None:
        """Read a tokenizer.json; raises StudentError unless it puts a mark before and after."""
        self.files, self.max_tokens = files, max_tokens
        self._tokenizer = _tokenizer(files)
        self._check()
        self._tokenizer.enable_truncation(max_tokens)
        pad = self._tokenizer.id_to_token(files.pad_id)
        self._tokenizer.enable_padding(pad_id=files.pad_id, pad_token=pad, length=max_tokens)

    @property
    def digest(self) -> str:
        """The sha256 of all that decides the tokens of a text."""
        known = f"{self.max_tokens} {self.files.pad_id}\n{self.files.tokenizer}"
        return sha256(known.encode()).hexdigest()

    def tokenise(self, texts: Sequence[str]) -> np.ndarray:
        """Return int32 [K,L]: each text between its marks, cut to L, padded at the end.

        What looks like a mark within a text is read as text.
        """
        tokens_KL = np.empty((len(texts), self.max_tokens), np.int32)
        for row, encoding in enumerate(self._encoded(texts)):
            tokens_KL[row] = encoding.ids
        return tokens_KL

    def count_cut(self, texts: Sequence[str]) -> int:
        """Return how many of the texts are longer than L."""
        return sum(bool(encoding.overflowing) for encoding in self._encoded(texts))

    def batch(self, tokens_BL: np.ndarray) -> TokenBatch:
        """Return tokens as a student reads them."""
        tokens = torch.from_numpy(tokens_BL.astype(np.int64))
        return TokenBatch(tokens, tokens != self.files.pad_id)

    def save(self, folder: Path) -> None:
        """Write what `text_reader` and `build_shared` need in place of the encoder's name."""
        self.files.save(folder)

    def _encoded(self, texts: Sequence[str]) -> "Iterator[Encoding]":
        # Said aloud, or the library warns at every later fork, whose child reads no text.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        for start in range(0, len(texts), _AT_ONCE):
            yield from self._tokenizer.encode_batch_fast(list(texts[start : start + _AT_ONCE]))

    def _check(self) -> None:
        known, places = self.files.config["vocab_size"], self.files.num_places
        if (count := self._tokenizer.get_vocab_size()) > known:
            raise StudentError(
                f"text encoder {self.files.source}: its tokenizer has {count} tokens, its config "
                f"{known}: they are not of one model"
            )
        if self.max_tokens > places:
            raise StudentError(
                f"text encoder {self.files.source} reads at most {places} tokens, and max_tokens "
                f"asks for {self.max_tokens}"
            )
        if len(self._tokenizer.encode("").ids) != 2:
            raise StudentError(
                f"text encoder {self.files.source}: expected a tokenizer that puts one mark before "
                "a text (as [CLS]) and one after; this one does not: choose another text encoder"
            )


def text_reader(spec: SharedOptions, folder: Path | None = None) -> TextReader:
    """Return what reads texts for a model; raises StudentError or LibraryError.

    folder: where `TextReader.save` wrote, in place of the name in `spec`.
    """
    files = find_text_files(spec.text if folder is None else str(folder))
    return TextReader(files.cut(spec.text_layers), spec.max_tokens)


def _tokenizer(files: TextFiles) -> Any:
    from tokenizers import Tokenizer  # which transformers brings

    try:
        tokenizer = Tokenizer.from_str(files.tokenizer)
    except Exception as error:  # the library raises bare ones
        raise StudentError(
            f"text encoder {files.source}: its tokenizer.json cannot be read ({error})"
        ) from None
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
