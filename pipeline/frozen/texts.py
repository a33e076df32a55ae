"""Embeds texts by a frozen text encoder that knows nothing of images.

Shape letters: B batch, L places of a text, T the text encoder's own width.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.options import options
from pipeline.shared.files import TextFiles, find_text_files
from pipeline.shared.reader import TextReader
from pipeline.shared.texts import build_text_encoder

Pooling = Literal["mean", "cls"]


@options
class TextFeatureOptions:
    """Which text encoder, and what of it stands for a text.

    pooling: `mean` over all places of a text in the last layer, its marks included, or `cls`, the
    first place. The default is the mean: BERT's class token was trained to tell whether two
    sentences follow each other, and RoBERTa's for nothing.
    """

    text: str  # a BERT, RoBERTa or DistilBERT: the hub's name, or a folder
    layers: int | None = None  # its first ones; by default all
    pooling: Pooling = "mean"
    max_tokens: int = 64  # of a text, its two marks included; longer ones are cut

    def __post_init__(self) -> None:
        if not self.text:
            raise ValueError("text is the name of an encoder, not empty")
        if self.layers is not None and self.layers < 1:
            raise ValueError(f"layers is at least 1, not {self.layers}")
        if self.max_tokens < 3:
            raise ValueError(f"max_tokens is at least 3, not {self.max_tokens}")


class TextFeatures:
    """A text encoder with its weights as they are, in evaluation mode."""

    def __init__(self, spec: TextFeatureOptions, device: torch.device) -> None:
        """Load it; raises StudentError if it is not as expected, LibraryError without its library.

        Weights that are not there are refused, never drawn.
        """
        whole = find_text_files(spec.text)
        files = whole.cut(whole.num_layers if spec.layers is None else spec.layers)
        self._spec, self._device, self._layers = spec, device, files.num_layers
        self._reader, self._count = TextReader(files, spec.max_tokens), _counter(files)
        encoder = build_text_encoder(files, "pretrained").eval().requires_grad_(False)
        self._encoder, self.dim = encoder.to(device), encoder.width
        self._sha256 = str((encoder.started_from or {})["sha256"])

    @property
    def max_tokens(self) -> int:
        """How many tokens of a text it reads, marks included."""
        return self._reader.max_tokens

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a text, uncut, marks included."""
        return len(self._count.encode(text).ids)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return float32 [B,T], normalised, on the CPU."""
        batch = self._reader.batch(self._reader.tokenise(texts))
        longest = int(batch.mask_BL.sum(dim=1).max())  # places behind it hold nothing
        mask_BL = batch.mask_BL[:, :longest].to(self._device)
        states_BLT = self._encoder(batch.tokens_BL[:, :longest].to(self._device), mask_BL)
        if self._spec.pooling == "cls":
            return F.normalize(states_BLT[:, 0].float(), dim=1).cpu()
        kept_BLT = states_BLT.float() * mask_BL[:, :, None]
        return F.normalize(kept_BLT.sum(dim=1), dim=1).cpu()  # the mean's length is lost anyway

    def fingerprint(self) -> dict[str, Any]:
        """Return all that tells its embeddings from another's; `model` is but its name."""
        return {
            "model": self._spec.text,
            "weights_sha256": self._sha256,
            "tokens_sha256": self._reader.digest,
            "layers": self._layers,
            "pooling": self._spec.pooling,
            "max_tokens": self._spec.max_tokens,
            "dim": self.dim,
        }


def _counter(files: TextFiles) -> Any:
    """Return the same tokenizer as a reader's, without its padding and its cut."""
    from tokenizers import Tokenizer

    found = Tokenizer.from_str(files.tokenizer)
    found.encode_special_tokens = True
    found.no_padding()
    found.no_truncation()
    return found
