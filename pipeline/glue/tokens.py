"""Turns texts into batches of tokens.

Shape letters: N examples, B batch, L places of a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.glue.encoder import LoadedText
from pipeline.glue.reading import Examples

_AT_A_TIME = 1000
TokenBatch = tuple[Tensor, Tensor, Tensor | None]  # tokens_BL, mask_BL, types_BL


@dataclass(frozen=True)
class Tokens:
    """Each example's tokens, int32, and types (which text of a pair), if there are any.

    truncated: examples of which something was cut off.
    """

    tokens: list[np.ndarray]
    types: list[np.ndarray]
    pad: int
    truncated: int

    def __len__(self) -> int:
        return len(self.tokens)

    def lengths_N(self) -> np.ndarray:
        """Return how many tokens each example has."""
        return np.array([len(one) for one in self.tokens])

    def batch(self, rows: Sequence[int]) -> TokenBatch:
        """Return the tokens of some examples, padded at the end to the longest of them."""
        lengths = [len(self.tokens[row]) for row in rows]
        mask_BL = np.arange(max(lengths)) < np.array(lengths)[:, None]
        types_BL = _padded(self.types, rows, mask_BL, 0) if self.types else None
        return _padded(self.tokens, rows, mask_BL, self.pad), torch.from_numpy(mask_BL), types_BL


def _padded(
    found: Sequence[np.ndarray], rows: Sequence[int], mask_BL: np.ndarray, pad: int
) -> Tensor:
    padded_BL = np.full(mask_BL.shape, pad, np.int64)
    padded_BL[mask_BL] = np.concatenate([found[row] for row in rows])
    return torch.from_numpy(padded_BL)


def tokenize(text: LoadedText, examples: Examples, max_tokens: int) -> Tokens:
    """Tokenize texts or pairs, the longer of a pair cut first where there are too many tokens."""
    most = min(max_tokens, text.encoder.max_positions, text.tokenizer.model_max_length)
    tokens, types, truncated = list[np.ndarray](), list[np.ndarray](), 0
    for start in range(0, len(examples), _AT_A_TIME):
        texts = [
            list(column[start : start + _AT_A_TIME])
            for column in (examples.firsts, examples.seconds)
            if column
        ]
        found = text.tokenizer(*texts, truncation=True, max_length=most)
        tokens += [np.array(one, np.int32) for one in found["input_ids"]]
        types += [np.array(one, np.int32) for one in found.get("token_type_ids", [])]
        truncated += sum(bool(one.overflowing) for one in found.encodings)
    return Tokens(tokens, types, int(text.tokenizer.pad_token_id), truncated)
