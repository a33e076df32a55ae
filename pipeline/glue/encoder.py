"""What is fine-tuned: a text encoder with its tokenizer, by default as transformers loads them.

Shape letters: B batch, L places of a text, E width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.checkpoints import tensors_sha256
from pipeline.errors import ProbeError
from pipeline.hub import offline_if_unreachable
from pipeline.shared.files import unloadable
from pipeline.shared.library import load_library, quiet

# Their first positions are never used: they begin to count after the padding's.
_COUNT_AFTER_PADDING = {"roberta", "xlm-roberta", "camembert"}
_POOLER = "pooler."  # a layer over CLS that fine-tuning puts its own in the place of


class TextEncoder(Protocol):
    """An nn.Module that reads tokens: `width` numbers at each of up to `max_positions` places.

    The state at the first place (CLS) is what is classified.
    """

    width: int
    max_positions: int

    def __call__(self, tokens_BL: Tensor, mask_BL: Tensor, types_BL: Tensor | None) -> Tensor:
        """Return states float [B,L,E]. tokens_BL: int64, padded at the end; mask_BL: bool, False
        there. types_BL: int64, which text of a pair a token is of, if the tokenizer says so."""


class Tokenizer(Protocol):
    """A transformers PreTrainedTokenizerFast, or what else says the same."""

    pad_token_id: Any
    cls_token_id: Any
    model_max_length: Any

    def __call__(self, *texts: list[str], **options: Any) -> Any:
        """Return input_ids, and token_type_ids if there are types, of each text or pair."""


@dataclass(frozen=True)
class LoadedText:
    """An encoder, which stays as it is, its tokenizer, and what it was loaded from."""

    encoder: TextEncoder
    tokenizer: Tokenizer
    lineage: Mapping[str, Any]


def load_text(name: str) -> LoadedText:
    """Load a text encoder by transformers from a folder, or by its name on the hub.

    No code of the folder is run, and no weight is random: only a pooler may lack. Raises
    LibraryError without transformers, StudentError for what cannot be loaded, ProbeError for what
    lacks weights or has no CLS.
    """
    transformers = load_library()
    if not Path(name).is_dir():
        offline_if_unreachable()
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            model, found = transformers.AutoModel.from_pretrained(
                name, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # the hub's, torch's and safetensors' errors share no root
        raise unloadable(name, error) from None
    _check(name, model, tokenizer, found["missing_keys"])
    lineage = {"name": name, "sha256": tensors_sha256(model.state_dict())}
    return LoadedText(_HubEncoder(model, tokenizer.pad_token_id), tokenizer, lineage)


def _check(name: str, model: Any, tokenizer: Any, missing: Any) -> None:
    """Raise ProbeError for an encoder that cannot be fine-tuned by its CLS."""
    if lacking := sorted(key for key in missing if not key.startswith(_POOLER)):
        raise ProbeError(
            f"the weights of text encoder {name!r} lack {len(lacking)} tensors ({lacking[0]}, ...),"
            " and random ones do not take their place: name whole weights"
        )
    if model.config.is_encoder_decoder:
        raise ProbeError(f"{name!r} is an encoder with a decoder; expected an encoder, as BERT")
    if tokenizer.cls_token_id is None or tokenizer.pad_token_id is None:
        raise ProbeError(f"the tokenizer of {name!r} has no CLS or no padding; expected BERT's kin")
    check_pairs(name, tokenizer)


def check_pairs(name: object, tokenizer: Tokenizer) -> None:
    """Raise ProbeError unless a pair begins with CLS and has a mark after each of its texts."""
    marks: list[int] = tokenizer([""], [""])["input_ids"][0]
    if len(marks) < 3 or marks[0] != tokenizer.cls_token_id:
        raise ProbeError(
            f"the tokenizer of {name} puts {len(marks)} marks around a pair of texts; expected "
            "CLS before it and a mark after each text, as of BERT: its tokenizer.json must say so "
            "of pairs (post_processor)"
        )


class _HubEncoder(nn.Module):
    """A transformers encoder, as `TextEncoder` says."""

    def __init__(self, model: Any, pad: int) -> None:
        super().__init__()
        config = model.config
        self.model, self.width = model, int(config.hidden_size)
        unused = pad + 1 if config.model_type in _COUNT_AFTER_PADDING else 0
        self.max_positions = int(config.max_position_embeddings) - unused
        self._typed = (getattr(config, "type_vocab_size", 0) or 0) > 1

    def forward(self, tokens_BL: Tensor, mask_BL: Tensor, types_BL: Tensor | None) -> Tensor:
        typed = {"token_type_ids": types_BL} if self._typed and types_BL is not None else {}
        found = self.model(input_ids=tokens_BL, attention_mask=mask_BL.long(), **typed)
        states_BLE: Tensor = found.last_hidden_state
        return states_BLE
