"""The nine tasks of GLUE (Wang et al. 2019): their files, columns, labels and scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.errors import ProbeError
from pipeline.options import nearest

_YES_NO = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_SENTENCES = ("sentence1", "sentence2")


@dataclass(frozen=True)
class Task:
    """One task, as GLUE's own download lays it out.

    folder: also its title. texts: the columns of one text, or of the two of a pair. label: the
    column of the label; labels: its values in the order of their classes, none where it is a
    number. scores: names of `scores.SCORES`; the first counts in the mean over tasks. dev: the
    files that are scored, by what tells them apart. header: the columns of files that do not name
    them. raw: a file of train and dev together, and one of the ids of dev, which stand in for the
    two.
    """

    folder: str
    texts: tuple[str, ...]
    label: str
    labels: tuple[str, ...] = _YES_NO
    scores: tuple[str, ...] = ("accuracy",)
    dev: Mapping[str, str] = field(default_factory=lambda: {"": "dev.tsv"})
    header: tuple[str, ...] = ()
    raw: tuple[str, str] | None = None

    @property
    def outputs(self) -> int:
        """How many numbers a model says of one example: one for each class, or the one asked."""
        return len(self.labels) or 1


TRAIN = "train.tsv"
TASKS: Mapping[str, Task] = {
    "cola": Task(
        "CoLA",
        ("sentence",),
        "label",
        scores=("matthews", "accuracy"),
        header=("source", "label", "mark", "sentence"),
    ),
    "sst2": Task("SST-2", ("sentence",), "label"),
    "mrpc": Task(
        "MRPC",
        ("#1 String", "#2 String"),
        "Quality",
        scores=("f1", "accuracy"),
        raw=("msr_paraphrase_train.txt", "dev_ids.tsv"),
    ),
    "qqp": Task("QQP", ("question1", "question2"), "is_duplicate", scores=("f1", "accuracy")),
    "stsb": Task("STS-B", _SENTENCES, "score", (), scores=("spearman", "pearson")),
    "mnli": Task(
        "MNLI",
        _SENTENCES,
        "gold_label",
        ("contradiction", "entailment", "neutral"),
        dev={"matched": "dev_matched.tsv", "mismatched": "dev_mismatched.tsv"},
    ),
    "qnli": Task("QNLI", ("question", "sentence"), "label", _ENTAILMENT),
    "rte": Task("RTE", _SENTENCES, "label", _ENTAILMENT),
    "wnli": Task("WNLI", _SENTENCES, "label"),
}


def chosen_tasks(names: Sequence[str] | None) -> list[str]:
    """Return the tasks asked for, by default all; "SST-2" is "sst2". Raises ProbeError."""
    if names is None:
        return list(TASKS)
    chosen = [name.strip().lower().replace("-", "") for name in names]
    for name, asked in zip(chosen, names, strict=True):
        if name not in TASKS:
            raise ProbeError(f"no GLUE task {asked!r}: {nearest(name, TASKS)}")
    return list(dict.fromkeys(chosen))
