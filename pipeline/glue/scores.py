"""Scores predictions as GLUE does.

Shape letters: N examples.
"""

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from pipeline.glue.reading import TaskData
from pipeline.glue.tasks import TASKS, Task

Scores = dict[str, float]


def accuracy(truth_N: np.ndarray, said_N: np.ndarray) -> float:
    """Return the share of right classes."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(truth_N, said_N))


def f1(truth_N: np.ndarray, said_N: np.ndarray) -> float:
    """Return F1 of class 1 (a paraphrase, a duplicate); 0 if none is said to be one."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth_N, said_N, pos_label=1, zero_division=0.0))


def matthews(truth_N: np.ndarray, said_N: np.ndarray) -> float:
    """Return Matthews' correlation coefficient; 0 if one class alone is said."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(truth_N, said_N))


def pearson(truth_N: np.ndarray, said_N: np.ndarray) -> float:
    """Return Pearson's correlation; 0, where it is not defined, if either does not vary."""
    from scipy.stats import pearsonr

    return float(pearsonr(truth_N, said_N).statistic) if _vary(truth_N, said_N) else 0.0


def spearman(truth_N: np.ndarray, said_N: np.ndarray) -> float:
    """Return Spearman's rank correlation; 0, where it is not defined, if either does not vary."""
    from scipy.stats import spearmanr

    return float(spearmanr(truth_N, said_N).statistic) if _vary(truth_N, said_N) else 0.0


def _vary(*values: np.ndarray) -> bool:
    return all(len(np.unique(one_N)) > 1 for one_N in values)


SCORES: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "spearman": spearman,
    "pearson": pearson,
}


def score_task(name: str, data: TaskData, said: Mapping[str, np.ndarray]) -> Scores:
    """Return a task's scores, as shares or correlations.

    said: what was said of each part of dev, classes or numbers [N]. Of several parts there is the
    mean, and each beside it, as in accuracy_matched.
    """
    task = TASKS[name]
    parts = {
        part: {score: SCORES[score](data.dev[part].labels_N, said[part]) for score in task.scores}
        for part in data.dev
    }
    means = {
        score: float(np.mean([found[score] for found in parts.values()])) for score in task.scores
    }
    if len(parts) == 1:
        return means
    return means | {
        f"{score}_{part}": value for part, found in parts.items() for score, value in found.items()
    }


def mean_score(scores: Mapping[str, Scores]) -> float:
    """Return the mean over tasks of the score that counts for each."""
    return float(np.mean([found[TASKS[name].scores[0]] for name, found in scores.items()]))


def without_reading(name: str, data: TaskData) -> Scores:
    """Return the scores of saying the same of every text: train's commonest class, or its mean."""
    said = _commonest(TASKS[name], data.train.labels_N)
    same = {
        part: np.full(len(found), said, found.labels_N.dtype) for part, found in data.dev.items()
    }
    return score_task(name, data, same)


def _commonest(task: Task, labels_N: np.ndarray) -> float:
    return float(
        Counter(labels_N.tolist()).most_common(1)[0][0] if task.labels else labels_N.mean()
    )
