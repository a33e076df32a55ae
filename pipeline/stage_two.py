"""Runs stage two by a recipe: opens the cache, checks that it is the recipe's, trains, probes."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline import __version__, runtime
from pipeline.batches import TrainingBatches, check_cache
from pipeline.cache.reader import Anchors, TargetCache, read_anchors
from pipeline.errors import CacheMismatchError, DataError
from pipeline.evaluate import Scores, evaluate_run
from pipeline.losses import resolve_tau
from pipeline.options import differences
from pipeline.prompts import PromptSet, load_prompts, prompt_set
from pipeline.recipe import Recipe, recipe_from
from pipeline.rundir import RunDir
from pipeline.shards import Shard, find_shards
from pipeline.students import Student, build_student
from pipeline.teacher import LOCAL_DIR
from pipeline.train import train_student


def train(
    recipe: Recipe,
    cache_path: Path,
    shards: Sequence[Shard],
    run_path: Path,
    *,
    resume: bool,
    workers: int,
    device: str,
) -> dict[str, Any]:
    """Train the recipe's student from a cache; return the last epoch's metrics.

    Raises CacheMismatchError if the cache was made by another recipe or from other shards, RunError
    if the run folder holds another run, StudentError, CacheError or ShardError.
    """
    cache = _open(cache_path, recipe)
    prompts = load_prompts(recipe.prompts.file)
    sets = {
        use: _check_prompts(cache, prompt_set(prompts, getattr(recipe.prompts, use)))
        for use in ("anchors", "zeroshot")
    }
    _check_labels(cache, sets["anchors"])
    input_px = recipe.student.input_px or int(cache.manifest["teacher"]["preprocess"]["size"])
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
    run = RunDir(run_path)
    origin = _origin(cache, shards, sets, input_px)
    run.begin(recipe.resolved(), origin, resume=resume)
    return train_student(
        run,
        student,
        source,
        torch.from_numpy(sets["anchors"].embeddings_AD),
        resolve_tau(recipe.terms(), cache.logit_scale),
        recipe.training,
        device=runtime.pick_device(device),
    )


def probe(
    run_path: Path,
    cache_path: Path | None,
    shard_patterns: Sequence[str],
    *,
    workers: int,
    device: str,
) -> Scores:
    """Score a finished run; by default with the cache and the shards that it was trained from."""
    run = RunDir(run_path)
    recipe = recipe_from(run.read_recipe(), where=f"{run_path}/recipe.yaml")
    origin = run.read_origin()
    student = rebuild_student(run, recipe)
    return evaluate_run(
        run,
        student,
        Path(origin["cache_path"]) if cache_path is None else cache_path,
        find_shards(shard_patterns or origin["shards"]),
        recipe.probes,
        zeroshot_set=origin["prompt_sets"]["zeroshot"],
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
    student.load_state_dict(weights)
    return student


def _open(path: Path, recipe: Recipe) -> TargetCache:
    """Open the train split under the recipe's schedule; raises CacheMismatchError with a diff."""
    cache = TargetCache.open(path, "train")
    if recipe.schedule.name in cache.manifest["splits"]["train"]["views"]:
        cache = TargetCache.open(path, "train", recipe.schedule.name)
    check_cache(cache, recipe.schedule, recipe.views, recipe.decode)
    found = _named_teacher(cache.manifest["teacher"])
    wanted = _named_teacher(vars(recipe.teacher))
    if changed := differences({"teacher": found}, {"teacher": wanted}):
        raise CacheMismatchError(f"{path} is of another teacher than the recipe's:", changed)
    return cache


def _named_teacher(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Name a teacher as a recipe does; where a folder lies says nothing of what it holds."""
    named = {name: fields[name] for name in ("model", "pretrained", "precision")}
    if named["model"].startswith(LOCAL_DIR):
        named["model"] = LOCAL_DIR
    return named


def _check_prompts(cache: TargetCache, prompts: PromptSet) -> Anchors:
    """Return the cached anchors of a prompt set; raises if the prompt file says other texts."""
    anchors = read_anchors(cache.path, prompts.name)
    old = {"class_names": anchors.class_names, "texts": anchors.texts}
    new = {"class_names": prompts.class_names, "texts": prompts.texts}
    if changed := differences(old, new):
        raise CacheMismatchError(
            f"{cache.path}: anchors {prompts.name!r} were made from other prompts; put the prompt "
            "file back, or make another cache:",
            changed,
        )
    return anchors


def _check_labels(cache: TargetCache, anchors: Anchors) -> None:
    """Raise DataError if the shards carry class numbers that the prompts do not name."""
    labels = cache.column("label")
    highest = int(labels.max()) if len(labels) else -1
    if highest >= len(anchors.class_names):
        raise DataError(
            f"the shards have a label {highest}, prompt set {anchors.name} names "
            f"{len(anchors.class_names)} classes (0 to {len(anchors.class_names) - 1}): give the "
            "prompts of this dataset"
        )


def _origin(
    cache: TargetCache, shards: Sequence[Shard], sets: Mapping[str, Anchors], input_px: int
) -> dict[str, Any]:
    """Say what a run is made from; `cache` is what must not change when it is taken up again."""
    return {
        "cache_path": str(cache.path.resolve()),
        "shards": [f"{shard.split}={shard.path.resolve()}" for shard in shards],
        "cache": {"generation": cache.manifest["generation"], "digest": cache.digest},
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
