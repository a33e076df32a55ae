"""Zero-shot probe: the nearest text anchor names the class.

Shape letters: N rows, A anchors (one per class), D teacher dimension.
"""

import numpy as np

from pipeline.errors import ProbeError
from pipeline.options import options
from pipeline.probes.contract import Result, Subject


@options
class ZeroshotOptions:
    """Nothing to set: the prompt set is the recipe's `prompts.zeroshot`."""


def run(subject: Subject, spec: ZeroshotOptions) -> Result:
    """Classify the test rows by cosine to the anchors.

    Scores: top1, top5 (with more than 5 classes) and mean_per_class, shares of the labelled rows.
    Raises ProbeError without labels, for labels that the prompt set does not have, or for anchors
    of another dimension.
    """
    test, anchors = subject.test, subject.need("anchors")
    known = test.labels_N >= 0
    labels_N, embedding_ND = test.labels_N[known], test.embedding_ND[known].astype(np.float32)
    num_classes = len(anchors.class_names)
    if not known.any():
        raise ProbeError("no test sample has a label (.cls): the zero-shot probe needs them")
    if not anchors.labelled:
        raise ProbeError(
            f"prompt set {anchors.name} does not hold one anchor for each label, in order (it is a "
            "sample of the classes, or keeps templates apart): give another"
        )
    if labels_N.max() >= num_classes:
        raise ProbeError(
            f"a test sample has label {labels_N.max()}, prompt set {anchors.name} has "
            f"{num_classes} classes (0 to {num_classes - 1}): give the prompts of this dataset"
        )
    if embedding_ND.shape[1] != anchors.embeddings_AD.shape[1]:
        raise ProbeError(
            f"the test embeddings have {embedding_ND.shape[1]} dimensions, prompt set "
            f"{anchors.name} has {anchors.embeddings_AD.shape[1]}: give the cache of the teacher "
            "that the student learned from"
        )
    if not np.isfinite(embedding_ND).all():
        raise ProbeError("the test embeddings hold NaN or Inf: training has diverged")
    # Classes of one text have one cosine, to the last bit: a product of all would not see to it.
    distinct_AD, places_A = np.unique(anchors.embeddings_AD, axis=0, return_inverse=True)
    cosine_NA = (embedding_ND @ distinct_AD.T)[:, places_A.reshape(-1)]
    # Stable: between equal cosines the lower class number wins.
    ranked_NA = np.argsort(-cosine_NA, axis=1, kind="stable")
    right_N = ranked_NA[:, 0] == labels_N
    scores = {
        "top1": float(right_N.mean()),
        "mean_per_class": float(np.mean([right_N[labels_N == c].mean() for c in set(labels_N)])),
    }
    if num_classes > 5:
        scores["top5"] = float((ranked_NA[:, :5] == labels_N[:, None]).any(axis=1).mean())
    return Result(scores)
