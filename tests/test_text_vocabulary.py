"""A WordPiece vocabulary that is the same every time."""

import random
import subprocess
import sys

from pipeline.text_vocabulary import MARKS, train_tokenizer

TEXTS = ["Aß1 abab abab baba", "abab, abc!"] * 3


def test_marks_come_first_and_every_character_has_a_token() -> None:
    vocabulary = train_tokenizer(TEXTS, 60, 12).get_vocab()
    assert [vocabulary[mark] for mark in MARKS] == [0, 1, 2, 3, 4]
    assert {"a", "##a", "1", "##1", ",", "!"} <= vocabulary.keys()
    assert "abab" in vocabulary
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))


def test_characters_are_no_marks() -> None:
    tokenizer = train_tokenizer(TEXTS, 60, 12)
    assert tokenizer.encode("xa").tokens[:3] == ["[CLS]", "[UNK]", "[SEP]"]  # as in BERT
    assert tokenizer.decode(tokenizer.encode("ABC abab").ids) == "abc abab"


def test_a_text_is_cut_and_padded_between_its_marks() -> None:
    tokenizer = train_tokenizer(TEXTS, 60, 5)
    assert tokenizer.encode("abab abab abab abab").ids[0] == MARKS.index("[CLS]")
    assert tokenizer.encode("abab abab abab abab").ids[-1] == MARKS.index("[SEP]")
    assert tokenizer.encode("abab").tokens == ["[CLS]", "abab", "[SEP]", "[PAD]", "[PAD]"]


def test_a_vocabulary_too_small_still_holds_the_characters() -> None:
    assert len(train_tokenizer(TEXTS, 5, 12).get_vocab()) > 5


def test_it_is_the_same_in_every_process() -> None:
    """A process has its own order of hash tables, by which the library numbers pieces."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(300)]
    texts = [" ".join(draw.choices(words, k=8)) for _ in range(200)]
    code = "from pipeline.text_vocabulary import train_tokenizer\n"
    code += f"print(train_tokenizer({texts!r}, 300, 12).to_str())"
    command = [sys.executable, "-c", code]
    here = train_tokenizer(texts, 300, 12).to_str()
    for _ in range(2):
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        assert found.stdout.strip() == here
