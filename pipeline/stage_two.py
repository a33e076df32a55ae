"""Runs stage two by a recipe: opens the cache, checks that it is the recipe's, trains."""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline import __version__, runtime, storage
from pipeline.anchors import check_labels
from pipeline.batches import TrainingBatches
from pipeline.cache import layout
from pipeline.cache.reader import Anchors, TargetCache
from pipeline.errors import RecipeError
from pipeline.held_out import HeldOut, held_out_slice
from pipeline.losses import LossSum, Sizes, resolve_tau
from pipeline.price import Price
from pipeline.ranks import ALONE, Ranks, joined, ranks_of_environment
from pipeline.reading import TEXT_FOLDER, kept_text, learns_pairs, reader_of, texts_of
from pipeline.recipe import Recipe
from pipeline.recipe_cache import known_teacher, open_cache, open_further, prompt_sets
from pipeline.rundir import RunDir
from pipeline.shards import Shard
from pipeline.shared.reader import TextReader
from pipeline.shared.student import SharedStudent
from pipeline.students import AnyStudent, build_student, init_student, load_weights
from pipeline.train import EpochListener, TargetsSource, TeacherAnchors, train_students
from pipeline.trainee import Trainee

_REMOTE_WINDOW = 16  # shards
LiveTargets = Callable[[TargetsSource, TargetCache], TargetsSource]


@dataclass(frozen=True)
class Loading:
    """How batches are made, which changes no number.

    workers: processes that render, None for as many as serve. check_digests: hold every image
    against its digest.
    """

    workers: int | None = None
    check_digests: bool = True


@dataclass(frozen=True)
class Setting:
    """What the students of one training share: caches, anchors, slice, stream and tokenizer."""

    caches: Sequence[TargetCache]
    teachers: Sequence[Anchors]  # the training anchors, in each teacher's space
    sets: Mapping[str, Anchors]
    shards: Sequence[Shard]
    held_out: HeldOut | None
    source: TargetsSource
    reader: TextReader | None = None  # of students that read texts


def train(
    recipe: Recipe,
    caches: Sequence[Path],
    shards: Sequence[Shard],
    runs: Mapping[Path, Recipe] | Path,
    *,
    resume: bool,
    device: str,
    loading: Loading = Loading(),
    generation: int | None = None,
    on_epoch: EpochListener | None = None,
    live: LiveTargets | None = None,
    price: Price | None = None,
) -> dict[Path, dict[str, Any]]:
    """Train students from one stream of batches; return each run's last metrics.

    runs: a folder for each student, with the recipe that differs from `recipe` in its student
    alone; a path stands for one of `recipe` itself. caches: the teacher's, then those of further
    teachers. generation: of the first cache; by default the one that a resumed run was begun with,
    else the newest. live: puts other targets in place of the cached ones, given views of the
    teacher's size too. price: of an hour, for the record; of runs that are taken up, in place of
    what they have. Runs that are finished are otherwise left as they are. Raises
    CacheMismatchError if a cache was made by another recipe or from other shards, RunError if a run
    folder holds another run or is being trained, StudentError, CacheError or ShardError.
    """
    runs = {runs: recipe} if isinstance(runs, Path) else runs
    folders = {RunDir(path): own for path, own in runs.items()}
    ranks = ranks_of_environment()
    where = runtime.pick_device(device, ranks.local if ranks.size > 1 else None)
    if generation is None and resume:
        generation = _begun_with(folders)
    with joined(ranks, where), ExitStack() as stack:
        setting = open_setting(
            recipe, caches, shards, list(folders.values()), generation, where, loading, ranks, live
        )
        trainees = _unfinished(folders, setting, where, ranks)
        if ranks.leads:
            told = {} if price is None else {"price": asdict(price)}
            begun = _begun(folders, trainees, setting, told, resume=resume, live=live is not None)
            stack.enter_context(begun)
        ranks.meet()
        trainees = [trainee for trainee in trainees if not trainee.run.is_finished()]
        ranks.meet()  # none looks whether a run is finished after another has finished it
        if trainees:
            train_students(
                trainees,
                setting.source,
                _teacher_anchors(setting),
                recipe.training,
                device=where,
                held_out=setting.held_out,
                ranks=ranks,
                on_epoch=on_epoch,
            )
        ranks.meet()
        return {run.path: run.last_metrics() for run in folders}


def _unfinished(
    runs: Mapping[RunDir, Recipe], setting: Setting, device: torch.device, ranks: Ranks
) -> list[Trainee]:
    """Return the students of the runs that are not finished, from their recipes' seeds."""
    unfinished = [(run, own) for run, own in runs.items() if not run.is_finished()]
    return [_trainee(run, own, setting, device, ranks) for run, own in unfinished]


@contextmanager
def _begun(
    runs: Mapping[RunDir, Recipe],
    trainees: Sequence[Trainee],
    setting: Setting,
    told: Mapping[str, Any],
    *,
    resume: bool,
    live: bool,
) -> Iterator[None]:
    """Begin the runs or take them up again, and hold them as long as the block runs.

    told: what their origins record besides.
    """
    inits = {trainee.run: trainee.student.started_from for trainee in trainees}
    with ExitStack() as stack:
        for run, own in runs.items():
            stack.enter_context(run.exclusive())
            # What is finished needs its first weights no more.
            init = inits[run] if run in inits else run.read_origin().get("init")
            origin = {**_origin(setting, own, live), "init": init, **told}
            run.begin(own.resolved(), origin, resume=resume)
            if setting.reader is not None and not run.is_finished():
                setting.reader.save(run.path / TEXT_FOLDER)
        yield


def open_setting(
    recipe: Recipe,
    cache_paths: Sequence[Path],
    shards: Sequence[Shard],
    recipes: Sequence[Recipe],
    generation: int | None,
    device: torch.device,
    loading: Loading = Loading(),
    ranks: Ranks = ALONE,
    live: LiveTargets | None = None,
) -> Setting:
    """Open what the students of `recipes` share; they may differ from `recipe` in the student."""
    cache = open_cache(cache_paths[0], recipe, generation)
    sets = prompt_sets(recipe.prompts, cache, shards)
    if layout.reads_text(cache.manifest):
        check_labels(cache, sets["zeroshot"])
    further = open_further(cache_paths[1:], recipe, cache, sets["anchors"])
    reader = reader_of(recipes)
    held_out = held_out_slice(
        cache,
        shards,
        recipe.training.held_out_rows,
        anchors=sets["anchors"],
        zeroshot=sets["zeroshot"],
        device=device,
        reader=reader,
    )
    others = [other for other, _ in further]
    sizes = {input_px(own, cache) for own in recipes}
    if live is not None:
        sizes.add(_teacher_px(cache))
    batches = TrainingBatches(
        cache,
        shards,
        sizes=sorted(sizes),
        batch_size=recipe.training.batch_size,
        num_views=recipe.views,
        seed=recipe.training.seed,
        others=others,
        texts=texts_of(cache, reader) if reader is not None and learns_pairs(recipe) else None,
        leave_out_N=None if held_out is None else held_out.leave_out_N,
        window=window_shards(recipe, shards),
        workers=_workers(loading, cache, ranks),
        ranks=ranks,
        device=device,
        check_digests=loading.check_digests,
    )
    return Setting(
        caches=[cache, *others],
        teachers=[sets["anchors"], *(anchors for _, anchors in further)],
        sets=sets,
        shards=shards,
        held_out=held_out,
        source=batches if live is None else live(batches, cache),
        reader=reader,
    )


def window_shards(recipe: Recipe, shards: Sequence[Shard]) -> int:
    """Return how many shards are read at a time: the recipe's word, else by where they lie."""
    if recipe.training.window_shards is not None:
        return recipe.training.window_shards
    remote = any(storage.store_of(shard.location) for shard in shards)
    return _REMOTE_WINDOW if remote else 0


def input_px(recipe: Recipe, cache: TargetCache) -> int:
    """Return the side of the views that a recipe's student sees: its own, or the teacher's."""
    return recipe.student.input_px or _teacher_px(cache)


def rebuild_student(run: RunDir, recipe: Recipe) -> AnyStudent:
    """Build a finished run's student, with its EMA weights."""
    origin = run.read_origin()
    weights = run.load_weights("student")
    student = build_student(
        recipe.student,
        dim=origin["dim"],
        input_px=origin["input_px"],
        seed=recipe.training.seed,
        text_folder=kept_text(run.path),
    )
    load_weights(student, weights, where=run.path)
    return student


def _teacher_px(cache: TargetCache) -> int:
    return int(cache.manifest["teacher"]["preprocess"]["size"])


def _trainee(
    run: RunDir, recipe: Recipe, setting: Setting, device: torch.device, ranks: Ranks
) -> Trainee:
    """Build a run's student and losses, from the recipe's seed alone."""
    cache, anchors = setting.caches[0], setting.teachers[0]
    size = input_px(recipe, cache)
    seed = recipe.training.seed
    student = build_student(recipe.student, dim=cache.dim, input_px=size, seed=seed)
    init_student(student, recipe.student, input_px=size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        losses = LossSum(
            resolve_tau(recipe.terms(), cache.logit_scale),
            Sizes(
                num_features=student.num_features,
                dim=cache.dim,
                num_anchors=len(anchors.embeddings_AD),
                num_classes=int(cache.column("label").max()) + 1,
                width=student.width if isinstance(student, SharedStudent) else 0,
            ),
        )
    return Trainee(run, student, losses, recipe.training, size=size, device=device, ranks=ranks)


def _teacher_anchors(setting: Setting) -> list[TeacherAnchors]:
    return [
        TeacherAnchors(torch.from_numpy(anchors.embeddings_AD), cache.logit_scale)
        for cache, anchors in zip(setting.caches, setting.teachers, strict=True)
    ]


def _begun_with(runs: Mapping[RunDir, Recipe]) -> int | None:
    """Return the cache generation that begun runs were begun with; raises if they differ."""
    found = {run.read_origin()["cache"]["generation"] for run in runs if run.is_begun()}
    if len(found) > 1:
        raise RecipeError(
            f"the runs were begun with generations {sorted(found)} of the cache: train them apart"
        )
    return int(found.pop()) if found else None


def _workers(loading: Loading, cache: TargetCache, ranks: Ranks) -> int:
    """Return how many processes render: as told, or a core's each beside the one that trains."""
    if loading.workers is not None:
        return loading.workers
    if sum(shard.size_bytes for shard in cache.shards) < runtime.LITTLE_BYTES:
        return 0
    return max(1, min(16, runtime.available_cores() // ranks.size - 1))


def _origin(setting: Setting, recipe: Recipe, live: bool) -> dict[str, Any]:
    """Say what a run is made from; `cache` is what must not change when it is taken up again."""
    cache = setting.caches[0]
    further = {
        f"further_{number}": {"digest": other.digest, "anchors": _digest(anchors)}
        for number, (other, anchors) in enumerate(
            zip(setting.caches[1:], setting.teachers[1:], strict=True), start=1
        )
    }
    return {
        "cache_path": str(cache.path.resolve()),
        "shards": [[shard.split, storage.absolute(shard.location)] for shard in setting.shards],
        "teacher": known_teacher(cache.manifest),
        "cache": {
            "generation": cache.manifest["generation"],
            "digest": cache.digest,
            "anchors": _digest(setting.sets["anchors"]),
            "live_targets": live,
            "window_shards": window_shards(recipe, setting.shards),
            **({} if setting.reader is None else {"tokens": setting.reader.digest}),
            **further,
        },
        "prompt_sets": {use: anchors.name for use, anchors in setting.sets.items() if anchors.name},
        "dim": cache.dim,
        "input_px": input_px(recipe, cache),
        "made_with": {
            "beamclip": __version__,
            "commit": runtime.git_commit(),
            "versions": runtime.versions(),
            "machine": platform.machine(),
        },
    }


def _digest(anchors: Anchors) -> str:
    return layout.array_digest(anchors.embeddings_AD)
