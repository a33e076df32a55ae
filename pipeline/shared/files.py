"""Finds what a text encoder is built from, beside its weights: its config and its tokenizer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import durable
from pipeline.errors import StudentError
from pipeline.hub import offline_if_unreachable
from pipeline.shared.library import load_library

CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
# What each family calls the number of its layers in its config.
LAYERS = {"bert": "num_hidden_layers", "roberta": "num_hidden_layers", "distilbert": "n_layers"}


@dataclass(frozen=True)
class TextFiles:
    """The text of the files that say how a text encoder is built and how it reads.

    source: the hub's name of the model, or a folder. config: what its config.json says.
    tokenizer: its tokenizer.json. tokenizer_config: its tokenizer_config.json, which other tools
    read; empty if there is none.
    """

    source: str
    config: Mapping[str, Any]
    tokenizer: str
    tokenizer_config: str = ""

    @property
    def family(self) -> str:
        """A key of LAYERS."""
        return str(self.config["model_type"])

    @property
    def width(self) -> int:
        """The size of the model's outputs."""
        return int(self.config["dim" if self.family == "distilbert" else "hidden_size"])

    @property
    def num_layers(self) -> int:
        """How many layers the config speaks of."""
        return int(self.config[LAYERS[self.family]])

    @property
    def pad_id(self) -> int:
        """The token that fills a short text up."""
        return int(self.config.get("pad_token_id") or 0)

    @property
    def num_places(self) -> int:
        """The most tokens of a text."""
        places = int(self.config["max_position_embeddings"])
        # RoBERTa counts places from behind the padding's number.
        return places - self.pad_id - 1 if self.family == "roberta" else places

    def cut(self, layers: int) -> "TextFiles":
        """Return the same for the first layers alone; raises StudentError if there are fewer."""
        if layers > self.num_layers:
            raise StudentError(
                f"text encoder {self.source} has {self.num_layers} layers, and text_layers asks "
                f"for {layers}: ask for at most {self.num_layers}"
            )
        return replace(self, config={**self.config, LAYERS[self.family]: layers})

    def save(self, folder: Path) -> None:
        """Write the files to a folder, each whole; `find_text_files` reads the same from it."""
        durable.write_json(folder / CONFIG, dict(self.config))
        durable.write_text(folder / TOKENIZER, self.tokenizer)
        if self.tokenizer_config:
            durable.write_text(folder / TOKENIZER_CONFIG, self.tokenizer_config)


def find_text_files(source: str) -> TextFiles:
    """Read the files of a model: a folder's, or else those of the hub or its local cache.

    Raises StudentError if one is not there or not as expected, or if the model is of another family
    than LAYERS names, LibraryError if transformers is not installed.
    """
    load_library()
    if not Path(source).is_dir():
        offline_if_unreachable()
    text = _content(source, CONFIG)
    try:
        config = json.loads(text)
        family = config["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise StudentError(
            f"text encoder {source}: its {CONFIG} is no config of a model "
            f"({type(error).__name__}: {error}): expected one that transformers wrote"
        ) from None
    if family not in LAYERS:
        raise StudentError(
            f"text encoder {source} is a {family!r}: expected one of {', '.join(LAYERS)}; choose "
            "another text encoder"
        )
    try:
        about = _content(source, TOKENIZER_CONFIG)
    except StudentError:
        about = ""
    return TextFiles(source, config, _content(source, TOKENIZER), about)


def unloadable(source: str, error: Exception) -> StudentError:
    """Return the error for a text encoder that cannot be had as it is named."""
    reason = (str(error).strip().splitlines() or [""])[0][:300]
    return StudentError(
        f"cannot load text encoder {source}: {type(error).__name__}: {reason}; expected a folder "
        "that transformers wrote, or a name whose files are in the hub's local cache or the hub "
        "reachable"
    )


def _content(source: str, name: str) -> str:
    path = Path(source) / name
    if not Path(source).is_dir():
        from huggingface_hub import hf_hub_download

        try:
            path = Path(hf_hub_download(source, name))
        except Exception as error:  # the hub's errors share no root
            raise unloadable(source, error) from None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise unloadable(source, error) from None
