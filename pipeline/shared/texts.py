"""The text encoder: the first layers of a BERT, RoBERTa or DistilBERT.

Shape letters: B batch, L places of a text, T the text encoder's own width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.checkpoints import tensors_sha256
from pipeline.errors import StudentError
from pipeline.hub import offline_if_unreachable
from pipeline.shared.contract import Init
from pipeline.shared.files import TextFiles, unloadable
from pipeline.shared.library import load_library, quiet

_ATTENTION = "sdpa"  # the one whose mask may be of bool
_NAMED = 3  # of the names that a message lists


class TextEncoder(nn.Module):
    """A transformers model without a pooler. started_from: its first weights, if given."""

    def __init__(self, model: nn.Module, width: int, started_from: dict[str, Any] | None) -> None:
        super().__init__()
        self.model, self.width, self.started_from = model, width, started_from

    def forward(self, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Return float [B,L,T] for int64 tokens; no place takes in one where the mask is False."""
        # With four dimensions the mask is taken as it is; else its values would be looked at.
        mask_B1LL = mask_BL[:, None, None, :].expand(-1, 1, mask_BL.shape[1], -1)
        found = self.model(input_ids=tokens_BL, attention_mask=mask_B1LL, return_dict=True)
        hidden_BLT: Tensor = found.last_hidden_state
        return hidden_BLT


def build_text_encoder(files: TextFiles, init: Init) -> TextEncoder:
    """Build the encoder that the files speak of; raises StudentError or LibraryError.

    init: pretrained loads the weights of `files.source`, every one of which must be there; scratch
    draws them from torch's generator.
    """
    transformers = load_library()
    pooler = {} if files.family == "distilbert" else {"add_pooling_layer": False}
    with quiet():
        try:
            config = transformers.CONFIG_MAPPING[files.family].from_dict(dict(files.config))
            if init == "pretrained":
                model, started_from = _pretrained(files, config, pooler)
            else:
                model = transformers.AutoModel.from_config(
                    config, attn_implementation=_ATTENTION, **pooler
                )
                started_from = None
        except StudentError:
            raise
        except Exception as error:  # the hub's, torch's and safetensors' errors share no root
            raise unloadable(files.source, error) from None
    return TextEncoder(model.train(), files.width, started_from)


def _pretrained(
    files: TextFiles, config: Any, pooler: dict[str, bool]
) -> tuple[nn.Module, dict[str, Any]]:
    offline_if_unreachable()
    model, found = load_library().AutoModel.from_pretrained(
        files.source,
        config=config,
        dtype=torch.float32,
        attn_implementation=_ATTENTION,
        output_loading_info=True,
        trust_remote_code=False,
        **pooler,
    )
    if missing := sorted(found["missing_keys"]):
        listed = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
        raise StudentError(
            f"the weights of text encoder {files.source} lack {len(missing)} tensors ({listed}), "
            "and random ones do not take their place: choose another, or text_init: scratch"
        )
    weights = model.state_dict()
    started_from = {"source": files.source, "sha256": tensors_sha256(weights), "used": len(weights)}
    return model, started_from
