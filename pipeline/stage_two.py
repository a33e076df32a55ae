"""Runs stage two by a recipe: opens the cache, checks that it is the recipe's, trains, probes."""

import logging
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline import __version__, runtime
from pipeline.anchors import cached_anchors, check_labels, named_anchors
from pipeline.batches import TrainingBatches, check_cache
from pipeline.cache import layout
from pipeline.cache.reader import Anchors, TargetCache, read_manifest
from pipeline.errors import CacheMismatchError, LibraryError
from pipeline.evaluate import Scores, evaluate_run
from pipeline.losses import resolve_tau
from pipeline.options import differences, parse, to_mapping
from pipeline.probes import ProbeOptions
from pipeline.prompt_file import PromptFile, check_class_order, load_prompts
from pipeline.prompts import PromptOptions, prompt_set
from pipeline.recipe import Recipe, recipe_from
from pipeline.rundir import RunDir
from pipeline.shards import Shard, find_shards, shards_at
from pipeline.students import Student, build_student, init_student, load_weights
from pipeline.teacher import LOCAL_DIR
from pipeline.train import train_student

_log = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    cache_path: Path,
    shards: Sequence[Shard],
    run_path: Path,
    *,
    resume: bool,
    workers: int,
    device: str,
    generation: int | None = None,
) -> dict[str, Any]:
    """Train the recipe's student from a cache; return the last epoch's metrics.

    generation: of the cache; by default the one that a resumed run was begun with, else the newest.
    A run that is finished already is left as it is. Raises CacheMismatchError if the cache was made
    by another recipe or from other shards, RunError if the run folder holds another run or is being
    trained, StudentError, CacheError or ShardError.
    """
    run = RunDir(run_path)
    if generation is None and resume and run.is_begun():
        generation = run.read_origin()["cache"]["generation"]
    cache = _open(cache_path, recipe, generation)
    sets = _prompt_sets(recipe.prompts, cache, shards)
    check_labels(cache, sets["zeroshot"])
    input_px = recipe.student.input_px or int(cache.manifest["teacher"]["preprocess"]["size"])
    where = runtime.pick_device(device)
    source = TrainingBatches(
        cache,
        shards,
        input_px=input_px,
        batch_size=recipe.training.batch_size,
        num_views=recipe.views,
        seed=recipe.training.seed,
        workers=workers,
    )
    student = build_student(
        recipe.student, dim=cache.dim, input_px=input_px, seed=recipe.training.seed
    )
    init = init_student(student, recipe.student, input_px=input_px)
    with run.exclusive():
        origin = {**_origin(cache, shards, sets, input_px), "init": init}
        run.begin(recipe.resolved(), origin, resume=resume)
        if run.is_finished():
            return run.last_metrics()
        return train_student(
            run,
            student,
            source,
            torch.from_numpy(sets["anchors"].embeddings_AD),
            resolve_tau(recipe.terms(), cache.logit_scale),
            recipe.training,
            device=where,
        )


def probe(
    run_path: Path,
    cache_path: Path | None,
    shard_patterns: Sequence[str],
    *,
    probes: Sequence[str] | None = None,
    zeroshot: str | None = None,
    workers: int,
    device: str,
) -> Scores:
    """Score a finished run; by default with the cache and the shards that it was trained from.

    zeroshot: a prompt set of the cache by its whole name; by default the one that the run names.
    """
    run = RunDir(run_path)
    recipe = recipe_from(run.read_recipe(), where=f"{run_path}/recipe.yaml")
    chosen = {**to_mapping(recipe.probes), "run": list(probes or recipe.probes.run)}
    origin = run.read_origin()
    cache_path = Path(origin["cache_path"]) if cache_path is None else cache_path
    manifest = read_manifest(cache_path, origin["cache"]["generation"])
    if changed := differences(_known_teacher(manifest), origin["teacher"]):
        raise CacheMismatchError(f"{cache_path} is of another teacher than the run's:", changed)
    shards = (
        find_shards(shard_patterns)
        if shard_patterns
        else shards_at([(split, Path(path)) for split, path in origin["shards"]])
    )
    student = rebuild_student(run, recipe)
    return evaluate_run(
        run,
        student,
        cache_path,
        shards,
        parse(ProbeOptions, chosen, where="probes"),
        generation=origin["cache"]["generation"],
        zeroshot_set=zeroshot or origin["prompt_sets"]["zeroshot"],
        input_px=origin["input_px"],
        device=runtime.pick_device(device),
        workers=workers,
    )


def rebuild_student(run: RunDir, recipe: Recipe) -> Student:
    """Build a finished run's student, with its EMA weights."""
    origin = run.read_origin()
    weights = run.load_weights("student")
    student = build_student(
        recipe.student, dim=origin["dim"], input_px=origin["input_px"], seed=recipe.training.seed
    )
    load_weights(student, weights, where=run.path)
    return student


def _open(path: Path, recipe: Recipe, generation: int | None) -> TargetCache:
    """Open the train split under the recipe's schedule; raises CacheMismatchError with a diff."""
    cache = TargetCache.open(path, "train", generation=generation)
    if recipe.schedule.name in cache.manifest["splits"]["train"]["views"]:
        cache = TargetCache.open(path, "train", recipe.schedule.name, generation=generation)
    check_cache(cache, recipe.schedule, recipe.views, recipe.decode)
    found = _named_teacher(cache.manifest["teacher"])
    wanted = _named_teacher(vars(recipe.teacher))
    if changed := differences({"teacher": found}, {"teacher": wanted}):
        raise CacheMismatchError(f"{path} is of another teacher than the recipe's:", changed)
    return cache


def _prompt_sets(
    spec: PromptOptions, cache: TargetCache, shards: Sequence[Shard]
) -> dict[str, Anchors]:
    """Return the cached anchors by their use, held against the prompt file if they are its own."""
    prompts = _readable_prompts(spec)
    if prompts is not None:
        check_class_order(prompts, shards)
    return {
        use: _anchors(prompts or Path(spec.file).stem, name, cache)
        for use, name in (("anchors", spec.anchors), ("zeroshot", spec.zeroshot))
    }


def _readable_prompts(spec: PromptOptions) -> PromptFile | None:
    """Return the prompt file, or None if it takes a library that stage two does without."""
    try:
        return load_prompts(spec.file, spec.descriptions)
    except LibraryError as error:
        _log.warning("cached anchors were not held against their prompt file: %s", error)
        return None


def _anchors(prompts: PromptFile | str, name: str, cache: TargetCache) -> Anchors:
    """Return a set of the prompt file (or of its name), or any of the cache by its whole name."""
    known = layout.anchor_names(cache.path)
    if isinstance(prompts, str):
        name = name if name in known else f"{prompts}-{name}"
        return named_anchors(cache.path, cache.manifest, name)
    if name not in prompts.prompt_sets and name in known:
        return named_anchors(cache.path, cache.manifest, name)
    return cached_anchors(cache.path, cache.manifest, prompt_set(prompts, name))


def _named_teacher(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Name a teacher as a recipe does; where a folder lies says nothing of what it holds."""
    named = {name: fields[name] for name in ("model", "pretrained", "precision")}
    if named["model"].startswith(LOCAL_DIR):
        named["model"] = LOCAL_DIR
    return named


def _known_teacher(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells a teacher from another of the same name or dimension."""
    return {name: manifest["teacher"][name] for name in ("weights_sha256", "preprocess", "dim")}


def _origin(
    cache: TargetCache, shards: Sequence[Shard], sets: Mapping[str, Anchors], input_px: int
) -> dict[str, Any]:
    """Say what a run is made from; `cache` is what must not change when it is taken up again."""
    return {
        "cache_path": str(cache.path.resolve()),
        "shards": [[shard.split, str(shard.path.resolve())] for shard in shards],
        "teacher": _known_teacher(cache.manifest),
        "cache": {
            "generation": cache.manifest["generation"],
            "digest": cache.digest,
            "anchors": layout.array_digest(sets["anchors"].embeddings_AD),
        },
        "prompt_sets": {use: anchors.name for use, anchors in sets.items()},
        "dim": cache.dim,
        "input_px": input_px,
        "made_with": {
            "beamclip": __version__,
            "commit": runtime.git_commit(),
            "versions": runtime.versions(),
            "machine": platform.machine(),
        },
    }
