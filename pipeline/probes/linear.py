"""Linear probe: logistic regression on frozen features, as scikit-learn defines it."""

from pipeline.probes.choices import LinearOptions, Part
from pipeline.probes.contract import Result, Subject


def run(subject: Subject, spec: LinearOptions) -> Result:
    """Fit on train, score on test: accuracy of backbone features, and of the embedding beside it.

    With C searched, the model that is scored is fitted anew on train and val together.

    Scores: accuracy and embedding_accuracy (shares of the labelled test rows), mean_per_class (the
    mean of the classes' own shares), C, iterations, objective (what was minimised) and converged
    (1 or 0); all but embedding_accuracy are of the backbone, or of the embedding alone if that is
    what `features` says or all there is. Details, of each part: how C was chosen, train rows and
    test recall of each class, how the fit ended. Raises ProbeError without labels or classes to
    tell apart, or for features that are not finite.
    """
    from pipeline.probes.scoring import score

    parts: tuple[Part, ...] = ("backbone", "embedding")
    if spec.features != "both":
        parts = (spec.features,)
    train = subject.need("train")
    if train.features_NF is train.embedding_ND:  # a teacher, known by its embedding alone
        parts = ("embedding",)
    results = {part: score(subject, part, spec) for part in parts}
    scores = dict(results[parts[0]].scores)
    if "embedding" in results:
        scores["embedding_accuracy"] = results["embedding"].scores["accuracy"]
    return Result(scores, {part: result.details for part, result in results.items()})
