"""A sweep file says which recipes are compared, and nothing that it says is lost."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import grid
from pipeline.errors import RecipeError
from pipeline.grid import load_sweep, points_of
from pipeline.recipe import load_recipe

SHIPPED = sorted(Path(grid.__file__).parent.glob("recipes/sweeps/*.yaml"))
ISM, BOTH = {"ism": {"weight": 10}}, {"ism": {"weight": 10}, "csm_ce": {}}
ROWS = [{"label": "ISM", "set": {"losses": ISM}}, {"label": "ISM + CE", "set": {"losses": BOTH}}]
SMALLEST: dict[str, Any] = {"name": "own", "recipe": "digits", "fields": {"views": [1, 2]}}


def write(folder: Path, **changed: Any) -> str:
    """Write a sweep file; None takes a key away."""
    fields = {key: value for key, value in {**SMALLEST, **changed}.items() if value is not None}
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
    return str(path)


def points(folder: Path, *overrides: str, **changed: Any) -> list[grid.Point]:
    return points_of(load_sweep(write(folder, **changed)), overrides)


class TestShipped:
    def test_there_are_some(self) -> None:
        assert {"digits", "fashion-mnist"} <= {path.stem for path in SHIPPED}

    @pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
    def test_each_is_a_grid_of_its_recipe_with_several_seeds(self, path: Path) -> None:
        sweep = load_sweep(path.stem)
        assert sweep.name == path.stem
        assert len(sweep.seeds) > 1
        base = load_recipe(sweep.recipe)
        found = points_of(sweep)
        assert len(found) > 3
        for point in found:
            assert point.recipe.teacher == base.teacher
            assert point.recipe.schedule == base.schedule
            assert point.recipe.views <= base.views


class TestPoints:
    def test_are_every_row_with_every_value_of_every_field(self, tmp_path: Path) -> None:
        fields = {"student.model": ["rn18", "mnv3"], "views": [1, 2]}
        found = points(tmp_path, rows=ROWS, fields=fields)
        assert [(*p.recipe.losses, p.recipe.student.model, p.recipe.views) for p in found] == [
            (*losses, model, views)
            for losses in (ISM, BOTH)
            for model in ("rn18", "mnv3")
            for views in (1, 2)
        ]
        assert len({p.slug for p in found}) == 8

    def test_differ_from_the_recipe_in_their_settings_alone(self, tmp_path: Path) -> None:
        base = load_recipe("digits").resolved()
        (point,) = points(tmp_path, fields={"training.ema": [0.5]})
        assert point.recipe.resolved() == {**base, "training": {**base["training"], "ema": 0.5}}

    def test_a_mapping_takes_the_whole_fields_place(self, tmp_path: Path) -> None:
        found = points(tmp_path, rows=ROWS, fields=None)
        assert [set(point.recipe.losses) for point in found] == [{"ism"}, {"ism", "csm_ce"}]

    def test_a_field_within_a_mapping_leaves_the_rest(self, tmp_path: Path) -> None:
        found = points(tmp_path, fields={"losses.ism.weight": [0, 1], "losses.kd.T": [2.0]})
        assert [point.recipe.losses["ism"]["weight"] for point in found] == [0, 1]
        assert all({"csm_ce", "entmin", "ism", "kd"} == set(p.recipe.losses) for p in found)

    def test_share_what_the_sweep_sets(self, tmp_path: Path) -> None:
        shared = {"losses": ISM, "training.epochs": 3}
        found = points(tmp_path, set=shared)
        assert [set(p.recipe.losses) for p in found] == [{"ism"}, {"ism"}]
        assert [p.recipe.training.epochs for p in found] == [3, 3]
        assert [dict(p.settings) for p in found] == [{"views": 1}, {"views": 2}]

    def test_overrides_lie_under_the_settings(self, tmp_path: Path) -> None:
        found = points(tmp_path, "training.epochs=3", "student.model=vitti")
        assert {(p.recipe.training.epochs, p.recipe.student.model) for p in found} == {(3, "vitti")}

    def test_a_seed_changes_the_training_seed_alone(self, tmp_path: Path) -> None:
        point = points(tmp_path)[0]
        seeded, plain = point.at(7).resolved(), point.recipe.resolved()
        assert seeded.pop("training") == {**plain.pop("training"), "seed": 7}
        assert seeded == plain


class TestNames:
    def test_say_the_labels_and_the_fields(self, tmp_path: Path) -> None:
        found = points(tmp_path, rows=ROWS, fields={"student.model": {"ResNet 18": "rn18"}})
        assert found[1].labels == {"row": "ISM + CE", "student.model": "ResNet 18"}
        assert [point.slug for point in found] == [
            "ISM_student.model=ResNet-18",
            "ISM-+-CE_student.model=ResNet-18",
        ]

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            ("rn18", "rn18"),
            (0.05, "0.05"),
            (True, "true"),
            (None, "null"),
            ({"ism": {"weight": 10}}, "ism.weight=10"),
            ([0.9, 0.99], "0=0.9 1=0.99"),
            ({}, "{}"),
        ],
    )
    def test_of_values_are_as_yaml_has_them(self, value: Any, text: str) -> None:
        assert grid.label(value) == text

    @pytest.mark.parametrize("name", ["..", "/", "../../etc", "a/b c", "-rf", "ü", "x" * 300])
    def test_of_folders_stay_in_the_folder(self, tmp_path: Path, name: str) -> None:
        (point,) = points(tmp_path, rows=[{"label": name, "set": {}}], fields=None)
        assert (tmp_path / point.slug).parent == tmp_path
        assert (tmp_path / point.slug).resolve() == tmp_path.resolve() / point.slug
        assert not point.slug.startswith(("-", "."))
        (tmp_path / point.slug).mkdir()

    def test_of_long_values_that_differ_at_the_end_differ(self, tmp_path: Path) -> None:
        rows = [{"label": "x" * 100 + end, "set": {"views": n}} for n, end in ((1, "a"), (2, "b"))]
        found = points(tmp_path, rows=rows, fields=None)
        assert found[0].slug != found[1].slug

    def test_do_not_change_when_a_value_is_added(self, tmp_path: Path) -> None:
        before = {point.slug for point in points(tmp_path)}
        assert before < {point.slug for point in points(tmp_path, fields={"views": [1, 2, 3]})}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sedes": [1]}, "unknown key 'sedes': did you mean 'seeds'?"),
    ({"rows": [{"labl": "a", "set": {}}]}, "unknown key 'rows.0.labl': did you mean 'label'?"),
    ({"fields": None}, "nothing to compare"),
    ({"fields": {"views": 2}}, "fields.views: expected a list of values"),
    ({"fields": {"views": []}}, "fields.views: expected a list of values"),
    ({"seeds": [0, 0]}, "different numbers"),
    ({"seeds": []}, "different numbers"),
    ({"seeds": [-1]}, "different numbers"),
    ({"probes": ["liner"]}, "unknown probe 'liner': did you mean 'linear'?"),
    ({"fields": {"student.modle": ["rn18"]}}, "unknown key 'student.modle': did you mean 'model'?"),
    ({"fields": {"losses.imm.weight": [1]}}, "unknown loss 'imm': did you mean 'ism'?"),
    ({"fields": {"views.x": [1]}}, "'views' is a value"),
    ({"fields": {"training.epochs": ["many"]}}, "training.epochs"),
    ({"fields": {"teacher.model": ["ViT-B-32"]}}, "'teacher.model': teacher belongs to the cache"),
    ({"fields": {"schedule.seed": [1]}}, "'schedule.seed': schedule belongs to the cache"),
    ({"fields": {"decode.max_px": [1]}}, "'decode.max_px': decode belongs to the cache"),
    ({"fields": {"training.seed": [1]}}, "list its values under `seeds`"),
    ({"fields": {"training": [{"epochs": 1}]}}, "list its values under `seeds`"),
    ({"fields": {"probes.linear.C": [1.0]}}, "changes no student"),
    ({"fields": {"name": ["a"]}}, "changes no number"),
    ({"fields": {"views": [1, 1]}}, "views has '1' twice"),
    ({"set": {"views": 2}}, "set and views both set 'views'"),
    ({"set": {"teacher.model": "x"}}, "set sets 'teacher.model'"),
    ({"rows": ROWS, "fields": {"losses.ism.weight": [1]}}, "row and losses.ism.weight both set"),
    ({"fields": {"views": {"a b": 1, "a-b": 2}}}, "would both lie in views=a-b/"),
    ({"fields": {"training.ema": {"a": 0.99, "b": 0.99}}}, "'a' and 'b' are the same recipe"),
    ({"recipe": "digit"}, "no recipe 'digit'"),
]


class TestRefusals:
    @pytest.mark.parametrize(("changed", "message"), REFUSED, ids=lambda part: json.dumps(part))
    def test_name_what_is_wrong(
        self, tmp_path: Path, changed: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(RecipeError) as caught:
            points(tmp_path, **changed)
        assert message in str(caught.value)

    @pytest.mark.parametrize("override", ["views=3", "training.seed=1"])
    def test_of_an_override_that_would_be_lost(self, tmp_path: Path, override: str) -> None:
        with pytest.raises(RecipeError, match="--set"):
            points(tmp_path, override)

    def test_of_a_sweep_that_is_not_there(self) -> None:
        with pytest.raises(RecipeError, match="no sweep 'digit': did you mean 'digits'"):
            load_sweep("digit")
