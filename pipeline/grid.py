"""Decides what a sweep trains: one recipe for each point of a grid."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline.errors import RecipeError
from pipeline.options import flatten, nearest, options, parse, to_mapping
from pipeline.probes import PROBES
from pipeline.recipe import Recipe, load_recipe, recipe_from, set_field
from pipeline.yamlfile import read_yaml

_FOLDER = Path(__file__).parent / "recipes" / "sweeps"
_LONGEST = 60  # characters of a value in a folder's name
# Fields that no point may set, and what to do instead.
_OF_THE_CACHE = (
    "belongs to the cache, and a sweep works from one: make a cache for each value, then sweep "
    "from each into an --out of its own"
)
_OF_NO_STUDENT = "changes no student: name what to score by in the sweep's `probes`"
_REFUSED = {
    **dict.fromkeys(
        ("teacher", "further_teachers", "schedule", "decode", "max_skip_fraction"), _OF_THE_CACHE
    ),
    "training.seed": "is what a sweep repeats every point with: list its values under `seeds`",
    "probes": _OF_NO_STUDENT,
    "name": "names the recipe and changes no number: rows and values have labels",
}


@options
class Row:
    """Values that belong together, as one line of a table; each takes its field's whole place."""

    label: str
    set: dict[str, Any]


@options
class Sweep:
    """Every row with every value of every field, trained under every seed.

    recipe: a bundled one's name, or a path. set: {dotted field: value} of all points. rows: one
    axis of the grid, hand-picked. fields: {dotted field: values}, an axis each; values are a list,
    or {label: value} to give them names. probes: by default the recipe's.
    """

    name: str
    recipe: str
    set: dict[str, Any] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    probes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.rows and not self.fields:
            raise ValueError("there is nothing to compare: give rows or fields")
        for path, values in self.fields.items():
            if not isinstance(values, list | dict) or not values:
                raise ValueError(
                    f"fields.{path}: expected a list of values, or {{label: value}}, found "
                    f"{values!r}"
                )
        fit = all(0 <= seed < 2**63 for seed in self.seeds)
        if not self.seeds or not fit or len({*self.seeds}) < len(self.seeds):
            raise ValueError(
                f"seeds are one or more different numbers, 0 to 2**63 - 1, not {list(self.seeds)}"
            )
        for name in self.probes:
            if name not in PROBES:
                raise ValueError(f"unknown probe {name!r}: {nearest(name, PROBES)}")


@dataclass(frozen=True)
class Point:
    """One recipe of a sweep, but for the seed.

    labels: {axis: label}; `row` is the axis of hand-picked rows. settings: {dotted field: value}.
    slug: the name of its folder, which no other point of the sweep has.
    """

    labels: Mapping[str, str]
    settings: Mapping[str, Any]
    slug: str
    recipe: Recipe

    def at(self, seed: int) -> Recipe:
        """Return the recipe under a seed."""
        return replace(self.recipe, training=replace(self.recipe.training, seed=seed))


def load_sweep(name: str) -> Sweep:
    """Load a sweep by name or path; raises RecipeError."""
    path = _find(name)
    where = f"sweep {path}"
    return parse(Sweep, read_yaml(path, where=where), where=where)


def with_seeds(sweep: Sweep, seeds: Sequence[int]) -> Sweep:
    """Return a sweep over other seeds; raises RecipeError."""
    return parse(Sweep, {**to_mapping(sweep), "seeds": list(seeds)}, where=f"sweep {sweep.name}")


def points_of(sweep: Sweep, overrides: Sequence[str] = ()) -> list[Point]:
    """Return the points, each a whole and checked recipe; raises RecipeError.

    overrides: `a.b=value`, of fields of the recipe that the sweep leaves alone.
    """
    where = f"sweep {sweep.name}"
    axes = _axes(sweep, where)
    _check_fields({"set": [_Choice("set", "", sweep.set)], **axes}, overrides, where)
    base = load_recipe(sweep.recipe, overrides).resolved()
    for path, value in sweep.set.items():
        set_field(base, path, value, where=where)
    points = [_point(base, choices, where) for choices in itertools.product(*axes.values())]
    _check_different(points, where)
    return points


@dataclass(frozen=True)
class _Choice:
    """One value of an axis."""

    axis: str
    label: str
    settings: Mapping[str, Any]


def _axes(sweep: Sweep, where: str) -> dict[str, list[_Choice]]:
    axes = {"row": [_Choice("row", row.label, row.set) for row in sweep.rows]} if sweep.rows else {}
    for path, values in sweep.fields.items():
        named = values.items() if isinstance(values, dict) else [(label(v), v) for v in values]
        axes[path] = [_Choice(path, name, {path: value}) for name, value in named]
    for axis, choices in axes.items():
        names = [choice.label for choice in choices]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise RecipeError(f"{where}: {axis} has {twice[0]!r} twice")
    return axes


def label(value: Any) -> str:
    """Name a value that was given no label: as YAML has it, of a mapping all its fields."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping | list) and value:
        return " ".join(f"{name}={label(inner)}" for name, inner in flatten(value).items())
    return json.dumps(value, default=str)


def _check_fields(
    axes: Mapping[str, Sequence[_Choice]], overrides: Sequence[str], where: str
) -> None:
    """Refuse what no point may set, and any field that would be set twice over."""
    taken: list[tuple[str, str]] = []
    for override in overrides:
        path = override.partition("=")[0]
        if path == "training.seed":
            raise RecipeError(f"--set {override}: training.seed {_REFUSED[path]}")
        taken.append(("--set", path))
    for axis, choices in axes.items():
        paths = sorted({path for choice in choices for path in choice.settings})
        for path in paths:
            if refused := [(name, why) for name, why in _REFUSED.items() if _overlap(path, name)]:
                name, why = refused[0]
                raise RecipeError(f"{where}: {axis} sets {path!r}: {name} {why}")
            if twice := [owner for owner, other in taken if _overlap(path, other)]:
                raise RecipeError(
                    f"{where}: {twice[0]} and {axis} both set {path!r}: one would undo the other"
                )
        taken += [(axis, path) for path in paths]


def _overlap(one: str, other: str) -> bool:
    """Tell whether one dotted field is the other, or holds it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _point(base: Mapping[str, Any], choices: Sequence[_Choice], where: str) -> Point:
    labels = {choice.axis: choice.label for choice in choices}
    settings = {path: value for choice in choices for path, value in choice.settings.items()}
    here = f"{where}, {' '.join(labels.values())}"
    fields = json.loads(json.dumps(base))
    for path, value in settings.items():
        set_field(fields, path, value, where=here)
    parts = [
        _slug(name) if axis == "row" else f"{_slug(axis)}={_slug(name)}"
        for axis, name in labels.items()
    ]
    return Point(labels, settings, "_".join(parts), recipe_from(fields, where=here))


def _slug(text: str) -> str:
    """Return a text as part of a folder's name: readable, and of no meaning to a shell."""
    plain = re.sub(r"[^A-Za-z0-9._+@=-]+", "-", text).strip("-.")
    if plain and len(plain) <= _LONGEST:
        return plain
    return f"{plain[: _LONGEST - 9]}-{sha256(text.encode()).hexdigest()[:8]}".lstrip("-")


def _check_different(points: Sequence[Point], where: str) -> None:
    """Refuse points that would share a folder, or that are one recipe under two names."""
    slugs: dict[str, Point] = {}
    recipes: dict[str, Point] = {}
    for point in points:
        other = slugs.setdefault(point.slug, point)
        if other is not point:
            raise RecipeError(
                f"{where}: {_named(other)} and {_named(point)} would both lie in {point.slug}/: "
                "give one another label"
            )
        same = recipes.setdefault(json.dumps(point.recipe.resolved(), sort_keys=True), point)
        if same is not point:
            raise RecipeError(f"{where}: {_named(same)} and {_named(point)} are the same recipe")


def _named(point: Point) -> str:
    return repr(" ".join(point.labels.values()))


def _find(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    known = {path.stem: path for path in _FOLDER.glob("*.yaml")}
    if name not in known:
        raise RecipeError(f"no sweep {name!r}: {nearest(name, known)}; or give a .yaml file")
    return known[name]
