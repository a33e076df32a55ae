"""Trains a WordPiece vocabulary on texts, the same one every time."""

from collections.abc import Sequence
from typing import Any

MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # token numbers from 0


def train_tokenizer(texts: Sequence[str], size: int, max_tokens: int) -> Any:
    """Return a tokenizer (of the library `tokenizers`) of at most about `size` tokens.

    It reads as an uncased BERT does: lower case, [CLS] before a text and [SEP] after, cut and
    padded to `max_tokens`. Every character of the texts has a token, so a few texts of many
    characters get more than `size`.
    """
    from tokenizers import Tokenizer, models, processors

    tokenizer = _plain(models.WordPiece(unk_token="[UNK]"))
    _train(tokenizer, texts, size)
    # Anew: to the trainer every character was a mark, which the tokenizer remembers.
    vocabulary = tokenizer.get_vocab()
    tokenizer = _plain(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(MARKS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(mark, MARKS.index(mark)) for mark in ("[CLS]", "[SEP]")],
    )
    tokenizer.enable_truncation(max_tokens)
    tokenizer.enable_padding(pad_id=0, pad_token=MARKS[0], length=max_tokens)
    return Tokenizer.from_str(tokenizer.to_str())


def _plain(model: Any) -> Any:
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _train(tokenizer: Any, texts: Sequence[str], size: int) -> None:
    """Train in place.

    The library numbers the pieces of one character in the order of a hash table, and settles ties
    by number: two trainings would differ. Named as marks, they have their numbers beforehand.
    """
    from tokenizers import trainers

    normalise = tokenizer.normalizer.normalize_str
    characters = sorted({c for text in texts for c in normalise(text) if not c.isspace()})
    pieces = [piece for c in characters for piece in (c, f"##{c}")]
    named = list(dict.fromkeys([*MARKS, *pieces]))
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(size, len(named)), special_tokens=named, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
