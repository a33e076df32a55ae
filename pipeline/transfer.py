"""Scores frozen encoders on labelled shards of any dataset: no cache, no teacher, none needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import runtime
from pipeline.anchors import named_anchors
from pipeline.cache import layout
from pipeline.cache.reader import Anchors, TargetCache, read_manifest
from pipeline.contracts import Features
from pipeline.encoders import Encoder, PlainOptions, open_encoder, run_encoder
from pipeline.errors import CacheMismatchError, DataError, ProbeError
from pipeline.evaluate import (
    Results,
    Scores,
    Tell,
    as_details,
    as_scores,
    captions_of,
    described,
    looked_at,
    needs_of,
    probed,
    runnable,
    warn_of_shared_images,
)
from pipeline.feature_store import FeatureStore
from pipeline.features import encoded_features, teacher_features
from pipeline.labelled import LabelledSplit, read_splits
from pipeline.labels import own_set
from pipeline.options import differences, to_mapping
from pipeline.probes import ProbeOptions
from pipeline.probing import check_teacher_of, chosen_probes, silent
from pipeline.prompt_file import check_class_order, load_prompts
from pipeline.prompts import PromptSet, prompt_set
from pipeline.recipe import probe_options, recipe_from
from pipeline.recipe_cache import known_teacher
from pipeline.rundir import WEIGHTS, RunDir
from pipeline.schedule import EVAL
from pipeline.shards import Shard, find_shards
from pipeline.students import reads_texts

Splits = Mapping[str, LabelledSplit]
_NO_ANCHORS = "a prompt set of these classes in the encoder's space: "
_PLAIN = "plain"  # a set that every bundled prompt file has


@dataclass(frozen=True)
class Texts:
    """Where the texts come from that an encoder's images are held against.

    prompts: a set that its own text encoder embeds. cache: of a teacher, whose anchors `zeroshot`
    and captions serve encoders of that teacher's space, by whole names; why: there is no
    `zeroshot`. same_images: whether the cache is of the test images themselves, and not of others.
    """

    prompts: PromptSet | None = None
    cache: Path | None = None
    zeroshot: str | None = None
    captions: str | None = None
    same_images: bool = True
    why: str = "give --prompts and --prompt-set, or --cache and --zeroshot"


@dataclass(frozen=True)
class Scoring:
    """How encoders are scored. asked: whether the probes were asked for by name."""

    spec: ProbeOptions
    asked: bool
    store: FeatureStore
    device: torch.device
    workers: int = 0


def probe_encoders(
    names: Sequence[str],
    shards: Sequence[Shard],
    spec: ProbeOptions,
    *,
    asked: bool,
    texts: Texts,
    plain: PlainOptions,
    keep: Path | None = None,
    workers: int = 0,
    device: str = "auto",
    tell: Tell = silent,
) -> tuple[Scores, dict[str, Any]]:
    """Score encoders by name on labelled shards; return scores and details, each by encoder.

    asked: whether the probes were asked for by name, so that none is left out for what it lacks.
    keep: a folder for features; None keeps none. Raises ProbeError, and what `open_encoder` does.
    """
    scoring = Scoring(spec, asked, FeatureStore(keep), runtime.pick_device(device), workers)
    encoders = {name: open_encoder(name, plain, scoring.device) for name in names}
    if texts.cache is not None and texts.zeroshot is None:
        own = own_set(texts.cache, read_manifest(texts.cache))
        texts = replace(texts, zeroshot=own.name if own else None)
    splits = _read("the shards", shards, spec, tell)
    results, labels_N = _scored(encoders, splits, texts, scoring)
    return as_scores(results, labels_N), as_details(results)


def probe_on(
    run_path: Path,
    datasets: Mapping[str, Sequence[str]],
    *,
    cache_path: Path | None = None,
    probes: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    zeroshot: str | None = None,
    workers: int = 0,
    device: str = "auto",
    tell: Tell = silent,
) -> dict[str, Scores]:
    """Score a finished run's students on other datasets: {dataset: patterns of labelled shards}.

    zeroshot: a set of the cache's anchors; by default DATASET-NAME with the NAME that the run's
    recipe uses, else the only one of the dataset. A student that reads texts by itself reads the
    prompt file of the dataset's name, of which the set is NAME, else plain; no cache has a part.
    Features are kept in the run. Returns {dataset: scores}, and puts them into the run's
    transfer.json.
    """
    run = RunDir(run_path)
    recipe = recipe_from(run.read_recipe(), where=f"{run_path}/recipe.yaml")
    spec = chosen_probes(probe_options(recipe.probes, overrides), probes)
    where, store = runtime.pick_device(device), FeatureStore(run.features_path)
    scoring = Scoring(spec, probes is not None, store, where, workers)
    reads = reads_texts(recipe.student)
    if reads and cache_path is not None:
        raise ProbeError(f"{run_path} reads texts by itself, in its own space: leave --cache out")
    cache = None if reads else _cache_of(cache_path, run.read_origin())
    own = recipe.prompts.zeroshot if recipe.prompts else None
    shards = {name: find_shards(patterns) for name, patterns in datasets.items()}
    encoders = {name: run_encoder(run, name, where) for name in WEIGHTS}
    scores: dict[str, Scores] = {}
    for dataset, found in shards.items():
        splits = _read(dataset, found, spec, tell)
        texts = Texts()
        if not reads:
            texts = _texts_for(dataset, cache, zeroshot, own)
        elif "anchors" in looked_at(spec):
            texts = _own_texts_for(dataset, found, zeroshot, own)
        results, labels_N = _scored(encoders, splits, texts, scoring)
        scores[dataset] = as_scores(results, labels_N)
        run.write_transfer(dataset, scores[dataset], as_details(results))
    return scores


def own_prompts(file: str, name: str, shards: Sequence[Shard]) -> PromptSet:
    """Return a set of a prompt file whose classes are in the order of the shards' labels.

    Raises DataError.
    """
    prompts = load_prompts(file)
    check_class_order(prompts, shards)
    return prompt_set(prompts, name)


def _read(dataset: str, shards: Sequence[Shard], spec: ProbeOptions, tell: Tell) -> Splits:
    """Read the splits that the probes need; tell what they are, and warn of what they share."""
    learns = "train" in needs_of(spec)
    splits = read_splits([s for s in shards if learns or s.split == "test"], dataset=dataset)
    tell(described(dataset, {n: s.columns["label"][s.usable_N] for n, s in splits.items()}))
    if "train" in splits:
        warn_of_shared_images(splits["train"].digests_N, splits["test"].digests_N)
    return splits


def _scored(
    encoders: Mapping[str, Encoder], splits: Splits, texts: Texts, scoring: Scoring
) -> tuple[Results, np.ndarray]:
    """Return results by encoder, and the labels of the test rows that were scored."""
    results: Results = {}
    labels_N = np.empty(0, np.int64)
    for name, encoder in encoders.items():
        own = _Features(encoder, scoring)
        spec, context = _context(name, encoder, splits, texts, scoring)
        if (teacher := context.get("teacher")) is not None:
            context["teacher"] = _aligned(teacher, own(splits["test"]))
        results[name] = probed(splits, own, spec, context)
        labels_N = own(splits["test"]).labels_N
    return results, labels_N


class _Features:
    """An encoder's features of a split: from the store, else made; kept while it is probed."""

    def __init__(self, encoder: Encoder, scoring: Scoring) -> None:
        self._encoder, self._scoring = encoder, scoring
        self._found: dict[str, Features] = {}

    def __call__(self, split: LabelledSplit) -> Features:
        if split.split not in self._found:
            key = {
                "encoder": self._encoder.identity,
                "view": to_mapping(self._encoder.view),
                "shards": split.sha256,
                "device": self._scoring.device.type,
            }
            self._found[split.split] = self._scoring.store.get(key, lambda: self._compute(split))
        return self._found[split.split]

    def _compute(self, split: LabelledSplit) -> Features:
        encoder = self._encoder
        return encoded_features(encoder.encode, split, encoder.view, workers=self._scoring.workers)


def _context(
    name: str, encoder: Encoder, splits: Splits, texts: Texts, scoring: Scoring
) -> tuple[ProbeOptions, dict[str, Any]]:
    """Return the probes that can be run for an encoder, and what they need beside its features."""
    needed = looked_at(scoring.spec)
    found: dict[str, Any] = {}
    why: dict[str, str] = {}
    if "anchors" in needed:
        found["anchors"], why["anchors"] = _anchors(name, encoder, texts)
    cache = None
    if texts.cache is not None and texts.same_images and needed & {"captions", "teacher"}:
        cache = _test_of(texts.cache, splits["test"])
        found["teacher"], why["teacher"] = teacher_features(cache), ""
    if cache is not None and "captions" in needed:
        found["captions"], why["captions"] = captions_of(cache, texts.captions)
        if encoder.space != known_teacher(cache.manifest):
            found["captions"], why["captions"] = None, f"captions {_foreign(name, cache.path)}"
    context = {part: value for part, value in found.items() if value is not None}
    there: set[Any] = {*context, *(splits.keys() & {"train"})}
    return runnable(scoring.spec, there, why, asked=scoring.asked), context


def _anchors(name: str, encoder: Encoder, texts: Texts) -> tuple[Anchors | None, str]:
    """Return anchors in an encoder's space, or why there are none."""
    if texts.prompts is not None and encoder.read is not None:
        return encoder.read(texts.prompts), ""
    if texts.cache is None or texts.zeroshot is None:
        tower = "" if encoder.read is not None else f"{name} has no text tower; "
        return None, f"{_NO_ANCHORS}{tower}{texts.why}"
    manifest = read_manifest(texts.cache)
    if encoder.space != known_teacher(manifest):
        return None, f"a prompt set {_foreign(name, texts.cache)}"
    return named_anchors(texts.cache, manifest, texts.zeroshot), ""


def _foreign(name: str, cache: Path) -> str:
    return f"in the encoder's space: {name} does not embed into that of the teacher of {cache}"


def _test_of(path: Path, split: LabelledSplit) -> TargetCache:
    """Open a cache's test split; raises CacheMismatchError if it is not of these very shards."""
    cache = TargetCache.open(path, "test", EVAL)
    theirs = {shard.name: shard.sha256 for shard in cache.shards}
    ours = {s.name: digest for s, digest in zip(split.shards, split.sha256, strict=True)}
    if changed := differences({"test": theirs}, {"test": ours}):
        raise CacheMismatchError(f"{path} was made from other test shards:", changed)
    return cache


def _aligned(teacher: Features, own: Features) -> Features:
    """Return the teacher's features of an encoder's rows; raises ProbeError if it lacks any."""
    places_N = np.searchsorted(teacher.rows_N, own.rows_N).clip(max=len(teacher.rows_N) - 1)
    if not np.array_equal(teacher.rows_N[places_N], own.rows_N):
        lacking = len(np.setdiff1d(own.rows_N, teacher.rows_N))
        raise ProbeError(f"the cache has no targets of {lacking} test images: score without it")
    embedding_ND = teacher.embedding_ND[places_N]
    return Features(embedding_ND, embedding_ND, own.labels_N, own.rows_N)


def _cache_of(path: Path | None, origin: Mapping[str, Any]) -> Path | None:
    """Return the cache whose anchors serve, None if the run's own is gone; CacheMismatchError."""
    if path is None and not layout.generations(Path(origin["cache_path"])):
        return None
    found = Path(origin["cache_path"]) if path is None else path
    check_teacher_of(found, read_manifest(found), origin["teacher"])
    return found


def _own_texts_for(
    dataset: str, shards: Sequence[Shard], asked: str | None, usual: str | None
) -> Texts:
    """Choose a set of the prompt file of a dataset's name, if there is one; raises DataError."""
    try:
        prompts = load_prompts(dataset)
    except DataError as error:
        return Texts(why=str(error))
    check_class_order(prompts, shards)
    name = usual if usual in prompts.prompt_sets else _PLAIN
    chosen = name if asked is None else asked.removeprefix(f"{dataset}-")
    return Texts(prompts=prompt_set(prompts, chosen))


def _texts_for(dataset: str, cache: Path | None, asked: str | None, usual: str | None) -> Texts:
    """Choose among a cache's prompt sets the one of a dataset."""
    if cache is None:
        return Texts(why="the run's cache is gone; give --cache")
    mine = [name for name in layout.anchor_names(cache) if name.startswith(f"{dataset}-")]
    chosen = asked
    if chosen is None and (f"{dataset}-{usual}" in mine or len(mine) == 1):
        chosen = f"{dataset}-{usual}" if f"{dataset}-{usual}" in mine else mine[0]
    why = f"{cache} has none of {dataset}: `beamclip anchors add {cache} --prompts {dataset}`"
    if mine:
        why = f"name one of {', '.join(mine)} with --zeroshot"
    return Texts(cache=cache, zeroshot=chosen, same_images=False, why=why)
