"""Text encoders with random weights, saved as transformers saves them."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from pipeline.shared.contract import SharedOptions
from pipeline.shared.library import quiet

WORDS = ("red", "green", "blue", "square", "on", "a", "dark", "ground", "##s", "[", "]", "pad")
TEXTS = ("a red square", "green squares on a dark ground", "blue", "A Red [PAD] square unheard")
FAMILIES = {"bert": 0, "roberta": 1, "distilbert": 0}  # and the number of their padding


def tokenizer(pad_id: int = 0) -> Tokenizer:
    """Return a WordPiece tokenizer of a few words, uncased."""
    marks = ["[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    marks.insert(pad_id, "[PAD]")
    vocabulary = {word: number for number, word in enumerate([*marks, *WORDS])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(mark, vocabulary[mark]) for mark in ("[CLS]", "[SEP]")],
    )
    made.add_special_tokens(marks)
    return made


def model_of(family: str, *, layers: int = 3, width: int = 64, seed: int = 0) -> Any:
    """Return a whole model of transformers, its pooler included where the family has one."""
    sizes: dict[str, Any] = {"vocab_size": 5 + len(WORDS), "pad_token_id": FAMILIES[family]}
    sizes |= {"max_position_embeddings": 24}
    if family == "distilbert":
        sizes |= {"dim": width, "n_layers": layers, "n_heads": 2, "hidden_dim": 2 * width}
    else:
        sizes |= {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 2 * width}
    config = transformers.CONFIG_MAPPING[family](**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.AutoModel.from_config(config).eval()


def make_text_encoder(folder: Path, family: str = "bert", **sizes: Any) -> Path:
    """Save such a model with its tokenizer."""
    with quiet():
        model_of(family, **sizes).save_pretrained(folder)
    add_tokenizer(folder, FAMILIES[family])
    return folder


def add_tokenizer(folder: Path, pad_id: int = 0) -> None:
    """Put the tokenizer's files beside a config."""
    tokenizer(pad_id).save(str(folder / "tokenizer.json"))
    marks = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", **marks}
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")


def options_of(folder: Path, **changed: Any) -> SharedOptions:
    """Return a small model of images and texts, of 2 of 6 blocks and 2 of 3 layers."""
    small: dict[str, Any] = {"image": "test_vit", "image_layers": 2, "text_layers": 2}
    return SharedOptions(**{**small, "text": str(folder), "max_tokens": 12, **changed})
