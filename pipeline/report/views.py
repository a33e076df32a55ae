"""Gathers what the page shows of each group of runs that may be compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.report.caveats import caveats, data_caveats
from pipeline.report.charts import gauge
from pipeline.report.classes import (
    Confused,
    Wrong,
    confusion,
    confusion_chart,
    context_chart,
    recorded_confusion,
    worst_images,
    worst_pairs,
)
from pipeline.report.collect import RunFacts
from pipeline.report.curves import Curves, learning_curves, prompts_chart
from pipeline.report.neighbours import maps
from pipeline.report.pictures import thumbnails
from pipeline.report.retrieval import Answers, Prompt, answers, chosen_prompts, find_prompt
from pipeline.report.scores import ScoreTable, headline_keys, score_table, title_of
from pipeline.report.seen import Seen, look
from pipeline.report.svg import Chart

MOST_STUDENTS = 3  # of a group that are shown image by image


@dataclass(frozen=True)
class ReportOptions:
    """What the page holds. images: whether students are run over their test images.

    prompts: texts whose nearest images are shown. every_table: tables without a row of ours, too.
    """

    images: bool = True
    prompts: tuple[str, ...] = ()
    every_table: bool = False
    device: str = "auto"
    workers: int = 0


DEFAULT = ReportOptions()


@dataclass(frozen=True)
class Card:
    """One headline score: of which student, in per cent, drawn beside teacher and chance."""

    title: str
    name: str
    share: float
    teacher: float | None
    chance: float | None
    picture: Markup


@dataclass(frozen=True)
class Grid:
    """The images nearest to one prompt, by encoder."""

    prompt: Prompt
    answers: tuple[Answers, ...]


@dataclass(frozen=True)
class ClassView:
    """How one student's classes fare; parts that need the cache may be missing."""

    name: str
    context: Chart | None
    matrix: Chart | None
    pairs: tuple[Confused, ...]
    worst: tuple[Wrong, ...]


@dataclass(frozen=True)
class ImageView:
    """What a group's students see of the test images. pictures: {row: data: address}."""

    grids: tuple[Grid, ...] = ()
    pictures: Mapping[int, str] | None = None
    maps: tuple[Chart, ...] = ()
    images: int = 0
    not_shown: int = 0  # students beyond MOST_STUDENTS


@dataclass(frozen=True)
class GroupView:
    """All that the page says of runs that share teacher, cache and zero-shot set."""

    title: str
    runs: tuple[RunFacts, ...]
    table: ScoreTable
    cards: tuple[Card, ...]
    notes: tuple[str, ...]
    curves: Curves | None
    prompts: Chart | None
    classes: tuple[ClassView, ...]
    images: ImageView


def group_view(
    runs: Sequence[RunFacts], places: Mapping[str, int], spec: ReportOptions
) -> GroupView:
    """Gather one group. Raises ProbeError for a prompt that its cache has not embedded."""
    notes = [note for run in runs for note in caveats(run)] + data_caveats(runs)
    seen: list[Seen] = []
    finished = [run for run in runs if run.is_finished][:MOST_STUDENTS]
    if spec.images and finished:
        seen, reasons = look(finished, device=spec.device, workers=spec.workers)
        notes += [
            f"{name}: its images are left out. {why}"
            for name, why in reasons.items()
            if not any(why in note for note in notes)  # said of the whole cache already
        ]
    classes = [_of_seen(one) for one in seen]
    shown = {one.run.name for one in seen}
    classes += [view for run in runs if run.name not in shown if (view := _of_details(run))]
    return GroupView(
        title=f"{runs[0].dataset}, from {runs[0].teacher}",
        runs=tuple(runs),
        table=score_table(runs),
        cards=tuple(_cards(runs)),
        notes=tuple(dict.fromkeys(notes)),
        curves=learning_curves(runs, places),
        prompts=prompts_chart(runs),
        classes=tuple(classes),
        images=_images(seen, classes, spec, len(runs)) if seen else ImageView(),
    )


def _cards(runs: Sequence[RunFacts]) -> list[Card]:
    """Return the best student's headline score under each probe."""
    cards = []
    for key in headline_keys(runs):
        scored = [(share, run) for run in runs if (share := run.score("student", *key)) is not None]
        if not scored:
            continue
        share, run = max(scored, key=lambda pair: pair[0])
        teacher, chance = (run.score(name, *key) for name in ("teacher", "chance"))
        title = f"{title_of(key)} accuracy" if key[1] in ("top1", "accuracy") else title_of(key)
        picture = gauge(f"{title} of {run.name}", share, teacher, chance)
        cards.append(Card(title[0].upper() + title[1:], run.name, share, teacher, chance, picture))
    return cards


def _of_seen(seen: Seen) -> ClassView:
    names = seen.ground.zeroshot.class_names
    counts_CC = confusion(seen.ground.labels_N, seen.said_N, len(names))
    return ClassView(
        name=seen.run.name,
        context=context_chart(seen),
        matrix=confusion_chart(names, counts_CC) if counts_CC.any() else None,
        pairs=tuple(worst_pairs(names, counts_CC)),
        worst=tuple(worst_images(seen)),
    )


def _of_details(run: RunFacts) -> ClassView | None:
    """Return what the zero-shot probe recorded of a run's classes, or None without it."""
    found = recorded_confusion(run.details)
    if found is None:
        return None
    names, counts_CC = found
    pairs = tuple(worst_pairs(names, counts_CC))
    return ClassView(run.name, None, confusion_chart(names, counts_CC), pairs, ())


def _images(
    seen: Sequence[Seen], classes: Sequence[ClassView], spec: ReportOptions, runs: int
) -> ImageView:
    ground = seen[0].ground
    asked = [find_prompt(ground, text) for text in spec.prompts]
    encoders = [(one.run.name, one.features) for one in seen] + [("Teacher", ground.teacher)]
    grids = tuple(
        Grid(prompt, tuple(answers(name, part, ground, prompt) for name, part in encoders))
        for prompt in asked or chosen_prompts(seen)
    )
    rows = {hit.row for grid in grids for answer in grid.answers for hit in answer.hits}
    rows |= {wrong.row for view in classes for wrong in view.worst}
    return ImageView(
        grids=grids,
        pictures=thumbnails(ground, rows, workers=spec.workers),
        maps=maps(seen),
        images=len(ground.labels_N),
        not_shown=max(0, runs - len(seen)),
    )
