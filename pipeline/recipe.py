"""Recipes: the YAML that fixes every number of a cache, a training and its probes."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.decode import DecodePolicy
from pipeline.embed import CacheOptions
from pipeline.errors import RecipeError
from pipeline.losses import AnchorOptions, Term, parse_term, parse_terms
from pipeline.optimizing import TrainOptions
from pipeline.options import nearest, options, parse, to_mapping
from pipeline.probes import ProbeOptions
from pipeline.prompts import PromptOptions
from pipeline.schedule import Schedule
from pipeline.students import StudentOptions
from pipeline.teacher import TeacherOptions
from pipeline.yamlfile import read_yaml

_FOLDER = Path(__file__).parent / "recipes"


@options
class Recipe:
    """Everything that changes a number; where and how it runs is the command line's."""

    name: str
    teacher: TeacherOptions
    # Each has a cache of its own over the same views; distributions over the anchors are averaged.
    further_teachers: tuple[TeacherOptions, ...] = ()
    schedule: Schedule
    views: int  # V: scheduled views per training sample
    # A teacher that reads no text has no anchors; a student that reads texts embeds `zeroshot`.
    prompts: PromptOptions | None = None
    captions: bool = False  # the cache keeps those that shards hold, for students that read them
    student: StudentOptions = StudentOptions()
    losses: dict[str, dict[str, Any]]
    training: TrainOptions
    probes: ProbeOptions = ProbeOptions()
    decode: DecodePolicy = DecodePolicy()
    max_skip_fraction: float = 0.01  # of a split's samples; more, and the cache is not sealed

    def __post_init__(self) -> None:
        if self.views < 1:
            raise ValueError(f"views is at least 1, not {self.views}")
        if not 0 <= self.max_skip_fraction <= 1:
            raise ValueError(f"max_skip_fraction is a share, 0 to 1, not {self.max_skip_fraction}")
        if self.teacher.reads_text and self.prompts is None:
            raise ValueError("prompts is missing: the teacher's text tower embeds its sets")
        if self.further_teachers and not self.teacher.reads_text:
            raise ValueError("further_teachers are compared over anchors, which take a text tower")

    def cache_options(self) -> CacheOptions:
        """Return what stage one needs of the recipe."""
        return CacheOptions(
            teacher=self.teacher,
            schedule=self.schedule,
            views=self.views,
            prompts=self.prompts,
            decode=self.decode,
            captions=self.captions,
            max_skip_fraction=self.max_skip_fraction,
        )

    def terms(self) -> list[Term]:
        """Return the losses that have a weight."""
        return parse_terms(self.losses, where=f"recipe {self.name}")

    def resolved(self) -> dict[str, Any]:
        """Return every field, defaults filled in, as plain values."""
        return dict(to_mapping(self))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe by name or path, with `a.b=value` overrides on top; raises RecipeError.

    Precedence: defaults of the options, then the YAML, then the overrides (values are YAML too).
    """
    path = _find(name)
    fields = read_yaml(path, where=f"recipe {path}")
    for override in overrides:
        _override(fields, override)
    return recipe_from(fields, where=f"recipe {path}")


def probe_options(base: ProbeOptions, overrides: Sequence[str]) -> ProbeOptions:
    """Return probe options with `probes.a.b=value` overrides on top; raises RecipeError."""
    fields: dict[str, Any] = {"probes": to_mapping(base)}
    for override in overrides:
        _override(fields, override)
    return parse(_Probes, fields, where="--set").probes


@options
class _Probes:
    """The part of a recipe that scoring alone depends on."""

    probes: ProbeOptions


def recipe_from(fields: Mapping[str, Any], *, where: str) -> Recipe:
    """Build a recipe from plain values; its losses are checked, and their defaults filled in."""
    recipe = parse(Recipe, fields, where=where)
    losses = {
        name: to_mapping(parse_term(name, loss, where=where).spec)
        for name, loss in recipe.losses.items()
    }
    terms = parse_terms(losses, where=where)
    over_anchors = [term.name for term in terms if isinstance(term.spec, AnchorOptions)]
    if over_anchors and not recipe.teacher.reads_text:
        raise RecipeError(
            f"{where}: {', '.join(over_anchors)} compare with text anchors, and teacher "
            f"{recipe.teacher.model} reads no text: take ism, mse, crd, seed or rkd, or another "
            "teacher"
        )
    _check_classes(recipe.teacher, terms, where)
    return dataclasses.replace(recipe, losses=losses)


def _check_classes(teacher: TeacherOptions, terms: Sequence[Term], where: str) -> None:
    """Raise RecipeError if `kd_kl` asks for classes that the teacher's targets do not tell of."""
    for spec in (term.spec for term in terms if term.name == "kd_kl"):
        if teacher.feature_point != "logits":
            raise RecipeError(
                f"{where}: kd_kl wants a teacher's classes, and teacher.feature_point is "
                f"{teacher.feature_point}: take logits, of a supervised teacher of kind timm"
            )
        if teacher.top_k is not None and (spec.top_k or teacher.top_k + 1) > teacher.top_k:
            raise RecipeError(
                f"{where}: the targets tell of the teacher's {teacher.top_k} greatest classes "
                f"alone (teacher.top_k): say losses.kd_kl.top_k, at most {teacher.top_k}"
            )


def _find(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    known = {path.stem: path for path in _FOLDER.glob("*.yaml")}
    if name not in known:
        raise RecipeError(f"no recipe {name!r}: {nearest(name, known)}; or give a .yaml file")
    return known[name]


def set_field(fields: dict[str, Any], path: str, value: Any, *, where: str) -> None:
    """Put a value, whole, at a dotted place of plain values; raises RecipeError.

    Whether there is such a field is for the check of unknown keys to say, with the rest.
    """
    *parents, last = path.split(".")
    inner = fields
    for parent in parents:
        inner = inner.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"{where}: {parent!r} is a value, it has no fields")
    inner[last] = value


def _override(fields: dict[str, Any], override: str) -> None:
    import yaml

    path, equals, text = override.partition("=")
    if not equals or not path:
        raise RecipeError(f"--set {override!r}: expected field=value, as in training.seed=1")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise RecipeError(f"--set {override!r}: {text!r} is no value") from None
    set_field(fields, path, value, where=f"--set {override!r}")
