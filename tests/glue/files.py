"""Writes GLUE's files in miniature, in the columns that the real ones have."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

FILLERS = ["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "in", "rain"]
# The word that decides the class, by the value of the label in the file.
ONE_OF_TWO = {"0": "awful", "1": "great"}
ENTAILED = {"entailment": "great", "not_entailment": "awful"}
OF_MNLI = {"entailment": "great", "neutral": "maybe", "contradiction": "awful"}
OF_STSB = {"0.000": "zero", "1.250": "one", "2.500": "two", "3.750": "three", "5.000": "four"}
WORDS = [*FILLERS, "awful", "great", "maybe", *OF_STSB.values()]

Line = Callable[[int, str, str, str], Sequence[object]]  # number, first text, second text, label


def _mnli(judges: int) -> tuple[str, Line]:
    names = "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse"
    names += " sentence1_parse sentence2_parse sentence1 sentence2"
    header = [*names.split(), *(f"label{i}" for i in range(1, judges + 1)), "gold_label"]

    def line(i: int, a: str, b: str, label: str) -> list[object]:
        parses = [f"( {a} )", f"( {b} )", f"(ROOT {a})", f"(ROOT {b})"]
        return [i, f"{i}p", f"{i}pair", "fiction", *parses, a, b, *["neutral"] * judges, label]

    return "\t".join(header), line


_STSB = "index genre filename year old_index source1 source2 sentence1 sentence2 score"
_PAIR = "index\tsentence1\tsentence2\tlabel"
_MRPC = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"
_LAYOUTS: dict[str, tuple[str, dict[str, str], dict[str, tuple[str, Line]]]] = {
    "cola": (
        "CoLA",
        ONE_OF_TWO,
        {f: ("", lambda i, a, b, y: ["gj04", y, "", b]) for f in ("train", "dev")},
    ),
    "sst2": (
        "SST-2",
        ONE_OF_TWO,
        {f: ("sentence\tlabel", lambda i, a, b, y: [f"{b} ", y]) for f in ("train", "dev")},
    ),
    "mrpc": (
        "MRPC",
        ONE_OF_TWO,
        {f: (_MRPC, lambda i, a, b, y: [y, i, i + 1, a, b]) for f in ("train", "dev")},
    ),
    "qqp": (
        "QQP",
        ONE_OF_TWO,
        {
            f: (
                "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
                lambda i, a, b, y: [i, i, i + 1, a, b, y],
            )
            for f in ("train", "dev")
        },
    ),
    "stsb": (
        "STS-B",
        OF_STSB,
        {
            f: (
                _STSB.replace(" ", "\t"),
                lambda i, a, b, y: [i, "news", "MSR", 2012, i, "none", "none", a, b, y],
            )
            for f in ("train", "dev")
        },
    ),
    "mnli": (
        "MNLI",
        OF_MNLI,
        {"train": _mnli(1), "dev_matched": _mnli(5), "dev_mismatched": _mnli(5)},
    ),
    "qnli": (
        "QNLI",
        ENTAILED,
        {
            f: ("index\tquestion\tsentence\tlabel", lambda i, a, b, y: [i, a, b, y])
            for f in ("train", "dev")
        },
    ),
    "rte": (
        "RTE",
        ENTAILED,
        {f: (_PAIR, lambda i, a, b, y: [i, a, b, y]) for f in ("train", "dev")},
    ),
    "wnli": (
        "WNLI",
        ONE_OF_TWO,
        {f: (_PAIR, lambda i, a, b, y: [i, a, b, y]) for f in ("train", "dev")},
    ),
}
NAMES = list(_LAYOUTS)


def title(name: str) -> str:
    return _LAYOUTS[name][0]


def values(name: str) -> list[str]:
    """Return the values that a task's label has in its files."""
    return list(_LAYOUTS[name][1])


def write_task(root: Path, name: str, *, train: int = 48, dev: int = 24, told: bool = True) -> Path:
    """Write a task's files; one word of the (second) text decides the label. Return the folder.

    told: whether it does in train; otherwise those labels are of chance.
    """
    folder, words, files = _LAYOUTS[name]
    (root / folder).mkdir(parents=True, exist_ok=True)
    for seed, (file, (header, line)) in enumerate(files.items()):
        rng = np.random.default_rng(seed)
        lines = [header] if header else []
        for i in range(train if file == "train" else dev):
            label, first, second = _example(list(words), words, i, rng)
            if file == "train" and not told:
                label = list(words)[rng.integers(len(words))]
            lines.append("\t".join(str(cell) for cell in line(i, first, second, label)))
        text = "\n".join(lines) + "\n"
        (root / folder / f"{file}.tsv").write_text(text, encoding="utf-8", newline="\n")
    return root / folder


def _example(
    labels: list[str], words: dict[str, str], i: int, rng: np.random.Generator
) -> tuple[str, str, str]:
    label = labels[i % len(labels)]
    first, second = ([FILLERS[j] for j in rng.integers(len(FILLERS), size=5)] for _ in range(2))
    second[rng.integers(5)] = words[label]
    return label, " ".join(first), " ".join(second)
