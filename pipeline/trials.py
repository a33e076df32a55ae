"""The trials of a sweep, one point under one seed each, held against what they train from."""

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.anchors import check_labels
from pipeline.cache import layout
from pipeline.cache.reader import TargetCache, read_manifest
from pipeline.errors import CacheError, LibraryError, RunError
from pipeline.grid import Point
from pipeline.optimizing import check_precision
from pipeline.options import differences, to_mapping
from pipeline.prompt_file import PromptFile, load_prompts
from pipeline.prompts import PromptOptions
from pipeline.recipe import Recipe
from pipeline.recipe_cache import open_cache, open_further, prompt_sets
from pipeline.rundir import RunDir
from pipeline.shards import Shard
from pipeline.stage_two import input_px
from pipeline.students import build_student

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)  # each is itself: a point, with its mappings, has no hash
class Trial:
    """One point under one seed, and the folder of its run."""

    point: Point
    seed: int
    recipe: Recipe
    run: RunDir

    @property
    def name(self) -> str:
        """The point's folder and the run's in it, as a path from the sweep's folder."""
        return f"{self.point.slug}/{self.run.path.name}"


def trials_of(points: Sequence[Point], seeds: Sequence[int], out: Path) -> list[Trial]:
    """Return every point under every seed; all points under the first seed come first."""
    return [
        Trial(point, seed, point.at(seed), RunDir(out / point.slug / f"seed-{seed}"))
        for seed in seeds
        for point in points
    ]


def sharing(trials: Iterable[Trial]) -> list[list[Trial]]:
    """Put together the trials that differ in nothing but the student: one stream serves them."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(_key({**trial.recipe.resolved(), "student": None}), []).append(trial)
    return list(groups.values())


def check_trials(
    trials: Sequence[Trial], caches: Sequence[Path], shards: Sequence[Shard], device: "torch.device"
) -> TargetCache:
    """Refuse what would fail later; return the first cache, in the generation to train from.

    That is the one which begun runs were begun with, else the newest. Raises RunError for a folder
    that holds a run of another recipe or cache, CacheError for prompt sets that the cache lacks,
    with the commands that add them, and what stage two raises of caches, labels and students.
    """
    begun = [trial for trial in trials if trial.run.is_begun()]
    for trial in begun:
        _check_recipe(trial)
    generation = _generation(begun, caches[0])
    _check_added(trials, caches[0])
    seen: dict[str, TargetCache] = {}
    for trial in trials:
        recipe = trial.recipe
        key = _key([recipe.views, to_mapping(recipe.prompts)])
        if key not in seen:
            seen[key] = _opened(recipe, caches, shards, generation)
        check_precision(recipe.training, device)
    cache = next(iter(seen.values()))
    for recipe in {_key(to_mapping(t.recipe.student)): t.recipe for t in trials}.values():
        size = input_px(recipe, cache)
        build_student(recipe.student, dim=cache.dim, input_px=size, seed=recipe.training.seed)
    for trial in begun:
        if trial.run.read_origin()["cache"]["digest"] != cache.digest:
            raise RunError(
                f"{trial.run.path} was begun with another cache than {cache.path}: give that "
                "--cache, or name another --out"
            )
    return cache


def _check_recipe(trial: Trial) -> None:
    if changed := differences(trial.run.read_recipe(), trial.recipe.resolved()):
        rows = [f"  {field}: run has {old!r}, asked for {new!r}" for field, old, new in changed]
        head = f"{trial.run.path} holds a run of another recipe; name another --out:"
        raise RunError("\n".join([head, *rows]))


def _generation(begun: Sequence[Trial], cache: Path) -> int:
    """Return the generation of the cache from which all runs of a sweep are trained."""
    found = {trial.run.read_origin()["cache"]["generation"]: trial.run.path for trial in begun}
    if len(found) > 1:
        named = "; ".join(f"{path}: {generation}" for generation, path in sorted(found.items()))
        raise RunError(
            f"runs were begun with several generations of the cache ({named}), and would not "
            "compare: name another --out"
        )
    return int(next(iter(found), read_manifest(cache)["generation"]))


def _opened(
    recipe: Recipe, caches: Sequence[Path], shards: Sequence[Shard], generation: int
) -> TargetCache:
    """Open the caches as training will, and find in them what the recipe names."""
    cache = open_cache(caches[0], recipe, generation)
    sets = prompt_sets(recipe.prompts, cache, shards)
    if layout.reads_text(cache.manifest):
        check_labels(cache, sets["zeroshot"])
    open_further(caches[1:], recipe, cache, sets["anchors"])
    return cache


def _check_added(trials: Sequence[Trial], cache: Path) -> None:
    """Refuse prompt sets that could be in the cache and are not, all at once."""
    known = layout.anchor_names(cache)
    reading = [t.recipe for t in trials if t.recipe.teacher.reads_text]
    distinct = {_key(to_mapping(r.prompts)): r.prompts for r in reading if r.prompts}
    commands = dict.fromkeys(
        command for spec in distinct.values() for command in _commands(spec, cache, known)
    )
    if commands:
        raise CacheError(
            "\n".join(["the sweep names prompt sets that the cache lacks; add them:", *commands])
        )


def _commands(spec: PromptOptions, cache: Path, known: Sequence[str]) -> list[str]:
    """Return the commands that add what a recipe's prompt options name and a cache lacks."""
    try:
        prompts = load_prompts(spec.file, spec.descriptions)
    except LibraryError:  # stage two does without the library, and takes cached sets by name
        return []
    return [
        f"  beamclip anchors add {shlex.quote(str(cache))} {words}"
        for name in spec.uses.values()
        if (words := _adding(name, spec, prompts)) and _whole(name, prompts) not in known
    ]


def _whole(name: str, prompts: PromptFile) -> str:
    """Return a prompt set's name in a cache."""
    return f"{prompts.dataset}-{name}" if name in prompts.prompt_sets else name


def _adding(name: str, spec: PromptOptions, prompts: PromptFile) -> str | None:
    """Return the options of `anchors add` that make a prompt set, None if nothing would."""
    inner = _whole(name, prompts).removeprefix(f"{prompts.dataset}-")
    sample = re.fullmatch(r"(.+)\.(\d+)of\d+-seed(\d+)", inner)
    chosen = sample[1] if sample else inner
    if chosen not in prompts.prompt_sets or inner == name != chosen:
        return None
    words = ["--prompts", spec.file, "--sets", chosen]
    if spec.descriptions is not None:
        words += ["--descriptions", spec.descriptions]
    if sample:
        words += ["--sample", sample[2], "--seed", sample[3]]
    return shlex.join(words)


def _key(value: object) -> str:
    return json.dumps(value, sort_keys=True)
