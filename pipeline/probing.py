"""Scores a finished run by the probes that its recipe or the command line names."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pipeline import runtime
from pipeline.cache import layout
from pipeline.cache.reader import read_anchors, read_manifest
from pipeline.errors import CacheMismatchError, ProbeError
from pipeline.evaluate import CachedData, Scores, Tell, evaluate_run, looked_at
from pipeline.feature_store import FeatureStore
from pipeline.labels import check_named, own_set, warn_if_foreign
from pipeline.options import differences, parse, to_mapping
from pipeline.own_texts import OwnTexts
from pipeline.probes import ProbeOptions
from pipeline.prompt_file import load_prompts
from pipeline.prompts import prompt_set
from pipeline.reading import kept_text
from pipeline.recipe import Recipe, probe_options, recipe_from
from pipeline.recipe_cache import known_teacher
from pipeline.rundir import RunDir
from pipeline.shards import Shard, find_shards, shards_at
from pipeline.shared.reader import text_reader
from pipeline.stage_two import rebuild_student
from pipeline.students import reads_texts


def silent(line: str) -> None:
    """Say nothing of what is scored."""


def probe(
    run_path: Path,
    cache_path: Path | None,
    shard_patterns: Sequence[str],
    *,
    probes: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    zeroshot: str | None = None,
    captions: str | None = None,
    workers: int,
    device: str,
    tell: Tell = silent,
) -> Scores:
    """Score a finished run; by default with the cache and the shards that it was trained from.

    probes: those asked for by name; by default the recipe's, without those that lack something.
    overrides: of the recipe's `probes`. zeroshot, captions: sets of the cache by their whole names;
    by default the one that the run names, and the only one of the test split. The student's
    features are kept in the run: shards are read where they are not there. Raises DataError if a
    zero-shot set has other classes than the cache's own and the run's.
    """
    run = RunDir(run_path)
    recipe = recipe_from(run.read_recipe(), where=f"{run_path}/recipe.yaml")
    spec = chosen_probes(probe_options(recipe.probes, overrides), probes)
    origin = run.read_origin()
    cache_path = Path(origin["cache_path"]) if cache_path is None else cache_path
    manifest = read_manifest(cache_path, origin["cache"]["generation"])
    check_teacher_of(cache_path, manifest, origin["teacher"])
    usual = origin["prompt_sets"].get("zeroshot")
    if "anchors" in looked_at(spec) or usual is None:
        _check_zeroshot(cache_path, manifest, zeroshot, usual)
    where = runtime.pick_device(device)
    shards, splits = _shards(shard_patterns, origin)
    data = CachedData(
        path=cache_path,
        generation=origin["cache"]["generation"],
        shards=shards,
        splits=splits,
        named=bool(shard_patterns),
        zeroshot=zeroshot or usual,
        captions=captions,
    )
    return evaluate_run(
        run,
        rebuild_student(run, recipe),
        data,
        spec,
        asked=probes is not None,
        input_px=origin["input_px"],
        device=where,
        store=FeatureStore(run.features_path),
        texts=_own_texts(run, recipe, where),
        workers=workers,
        tell=tell,
    )


def _own_texts(run: RunDir, recipe: Recipe, device: torch.device) -> OwnTexts | None:
    """Return how a run's student reads texts, with the recipe's zero-shot prompts."""
    if not reads_texts(recipe.student):
        return None
    prompts = None
    if recipe.prompts is not None:
        loaded = load_prompts(recipe.prompts.file, recipe.prompts.descriptions)
        prompts = prompt_set(loaded, recipe.prompts.zeroshot)
    reader = text_reader(recipe.student.shared, kept_text(run.path))
    return OwnTexts(reader, prompts, device)


def chosen_probes(spec: ProbeOptions, names: Sequence[str] | None) -> ProbeOptions:
    """Return the options with the probes that were asked for by name; raises RecipeError."""
    asked = {**to_mapping(spec), "run": list(names or spec.run)}
    return parse(ProbeOptions, asked, where="probes")


def check_teacher_of(cache: Path, manifest: Mapping[str, Any], teacher: Mapping[str, Any]) -> None:
    """Raise CacheMismatchError if a cache is of another teacher than the one known of a run."""
    if changed := differences(known_teacher(manifest), dict(teacher)):
        raise CacheMismatchError(f"{cache} is of another teacher than the run's:", changed)


def _shards(
    patterns: Sequence[str], origin: Mapping[str, Any]
) -> tuple[Callable[[], Sequence[Shard]], set[str]]:
    """Return how the shards are found, and of which splits they are.

    Those that are named are looked for at once; the run's own, only if they are read.
    """
    if patterns:
        found = find_shards(patterns)
        return (lambda: found), {shard.split for shard in found}
    places = [(split, location) for split, location in origin["shards"]]
    return cache(lambda: shards_at(places)), {split for split, _ in places}


def _check_zeroshot(
    cache: Path, manifest: Mapping[str, Any], asked: str | None, runs: str | None
) -> None:
    """Hold a zero-shot set's classes against those of the cache's own; the run's own may differ.

    runs: the run's own set, None if its teacher reads no text; raises ProbeError if one is asked
    for then.
    """
    if runs is None:
        if asked is not None:
            raise ProbeError(
                f"--zeroshot {asked} names a prompt set of the cache, and there is none that this "
                "run could be scored by: its teacher reads no text"
            )
        return
    own = own_set(cache, manifest)
    anchors = read_anchors(cache, asked or runs)
    if asked is None:
        warn_if_foreign(anchors, own)
    elif anchors.labelled:  # the probe itself refuses others
        known = [read_anchors(cache, runs)] if runs in layout.anchor_names(cache) else []
        check_named(anchors, [own, *known])
