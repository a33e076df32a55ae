"""A recipe fixes every number, says so when it does not, and survives being written down."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import recipe as recipe_module
from pipeline.errors import BeamclipError, RecipeError
from pipeline.losses import AnchorOptions
from pipeline.prompt_file import load_prompts
from pipeline.prompts import prompt_set
from pipeline.recipe import Recipe, load_recipe, recipe_from

SHIPPED = sorted(Path(recipe_module.__file__).parent.glob("recipes/*.yaml"))
SMALLEST: dict[str, Any] = {
    "name": "small",
    "teacher": {"model": "local-dir:somewhere"},
    "schedule": {},
    "views": 1,
    "prompts": {"file": "digits", "anchors": "cpa", "zeroshot": "plain"},
    "losses": {"csm_ce": {}},
    "training": {"epochs": 1},
}


def write(folder: Path, fields: Any) -> str:
    """Write a recipe file and return its path."""
    path = folder / "own.yaml"
    path.write_text(fields if isinstance(fields, str) else yaml.safe_dump(fields), encoding="utf-8")
    return str(path)


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the smallest recipe with one dotted field set."""
    fields: dict[str, Any] = json.loads(json.dumps(SMALLEST))
    *parents, last = path.split(".")
    inner = fields
    for parent in parents:
        inner = inner.setdefault(parent, {})
    inner[last] = value
    return fields


class TestShipped:
    @pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
    def test_loads_by_name(self, path: Path) -> None:
        recipe = load_recipe(path.stem)
        assert recipe.name == path.stem
        assert recipe.terms()
        assert recipe.cache_options().views == recipe.views

    @pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
    def test_names_prompts_that_are_there(self, path: Path) -> None:
        options = load_recipe(path.stem).prompts
        assert options is not None
        prompts = load_prompts(options.file)
        for name in options.uses.values():
            assert prompt_set(prompts, name).texts

    @pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
    def test_says_where_it_is_from_what_it_gives_and_what_it_costs(self, path: Path) -> None:
        head = path.read_text(encoding="utf-8").split("name:")[0]
        for word in ("document", "Expected", "Cost", "Command"):
            assert word in head

    def test_there_is_one(self) -> None:
        assert "digits" in {path.stem for path in SHIPPED}


class TestLoading:
    def test_what_a_recipe_leaves_out_has_a_default(self, tmp_path: Path) -> None:
        recipe = load_recipe(write(tmp_path, SMALLEST))
        assert recipe.student.model == "rn18"
        assert recipe.training.ema == 0.99
        assert recipe.probes.linear.C == 30
        assert recipe.terms()[0].spec == AnchorOptions()

    def test_yaml_goes_before_defaults_and_overrides_before_yaml(self, tmp_path: Path) -> None:
        path = write(tmp_path, changed("training.batch_size", 7))
        assert load_recipe(path).training.batch_size == 7
        assert load_recipe(path, ["training.batch_size=9"]).training.batch_size == 9
        assert load_recipe(path, ["training.seed=9"]).training.batch_size == 7

    def test_of_two_overrides_the_last_one_counts(self, tmp_path: Path) -> None:
        path = write(tmp_path, SMALLEST)
        assert load_recipe(path, ["views=2", "views=3"]).views == 3

    def test_an_override_takes_any_yaml_value(self, tmp_path: Path) -> None:
        overrides = [
            "schedule.crop_scale=[0.5, 0.9]",
            "student.input_px=null",
            "training.ema_warm_up=false",
            "student.model=a=b",
            "losses.ism={weight: 10}",
            "losses.csm_ce.weight=0",
            "training.learning_rate=1.0e-3",
        ]
        recipe = load_recipe(write(tmp_path, SMALLEST), overrides)
        assert recipe.schedule.crop_scale == (0.5, 0.9)
        assert recipe.student.input_px is None
        assert recipe.training.ema_warm_up is False
        assert recipe.student.model == "a=b"
        assert [term.name for term in recipe.terms()] == ["ism"]
        assert recipe.training.learning_rate == 0.001

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("training.seed", "expected field=value"),
            ("=3", "expected field=value"),
            ("views.more=3", "'views' is a value, it has no fields"),
            ("views=[1", "is no value"),
            ("training.learning_rte=0.1", "did you mean 'learning_rate'"),
            ("trainig.seed=1", "did you mean 'training'"),
            (".seed=1", "unknown key"),
            ("losses.imm.weight=1", "did you mean 'ism'"),
            ("losses.csm_ce.weight=0", "no loss has a weight"),
            ("views=many", "'views'"),
            ("training.epochs=", "'training.epochs'"),
            ("schedule.crop_scale.0=0.3", "'crop_scale' is a value"),
            ("training.learning_rate=1e-3", r"1\.0e-3"),
        ],
    )
    def test_a_wrong_override_is_an_error_that_says_what_to_write(
        self, tmp_path: Path, override: str, message: str
    ) -> None:
        path = write(tmp_path, changed("schedule.crop_scale", [0.2, 1.0]))
        with pytest.raises(RecipeError, match=message):
            load_recipe(path, [override])

    def test_an_unknown_name_names_the_nearest(self) -> None:
        with pytest.raises(RecipeError, match=r"no recipe 'digit': did you mean 'digits'\?"):
            load_recipe("digit")

    @pytest.mark.parametrize(
        "text", ["", "- a\n- b\n", "just words", "a: [1", "a: b: c", "\x00", "1: 2", "? [a]\n: b\n"]
    )
    def test_a_file_that_is_no_recipe_is_an_error(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(RecipeError, match=r"own\.yaml"):
            load_recipe(write(tmp_path, text))

    def test_a_file_that_is_not_there_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match=r"gone\.yaml cannot be read"):
            load_recipe(str(tmp_path / "gone.yaml"))
        (tmp_path / "folder.yaml").mkdir()
        with pytest.raises(RecipeError, match=r"folder\.yaml cannot be read"):
            load_recipe(str(tmp_path / "folder.yaml"))

    def test_a_file_that_is_no_text_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00a")
        with pytest.raises(RecipeError, match=r"bytes\.yaml cannot be read"):
            load_recipe(str(tmp_path / "bytes.yaml"))

    @pytest.mark.parametrize("key", ["views", "training", "epochs"])
    def test_a_key_given_twice_is_an_error_that_names_the_line(
        self, tmp_path: Path, key: str
    ) -> None:
        text = yaml.safe_dump(SMALLEST)
        more = {"views": "views: 2\n", "training": "training: {epochs: 5}\n", "epochs": ""}[key]
        if key == "epochs":
            text = text.replace("  epochs: 1\n", "  epochs: 1\n  epochs: 2\n")
        with pytest.raises(RecipeError, match=rf"line \d+ gives '{key}' a second time"):
            load_recipe(write(tmp_path, text + more))


class TestChecking:
    @pytest.mark.parametrize(
        ("path", "hint"),
        [
            ("view", "did you mean 'views'"),
            ("techer", "did you mean 'teacher'"),
            ("teacher.modl", "did you mean 'model'"),
            ("schedule.crop_scal", "did you mean 'crop_scale'"),
            ("prompts.anchor", "did you mean 'anchors'"),
            ("student.input", "did you mean 'input_px'"),
            ("losses.csm_ce.taw", "did you mean 'tau'"),
            ("training.epoch", "did you mean 'epochs'"),
            ("probes.linear.max_iters", "did you mean 'max_iter'"),
            ("probes.linaer", "did you mean 'linear'"),
            ("probes.zeroshot.top", "unknown key 'probes.zeroshot.top'"),
            ("decode.max_pixel", "did you mean 'max_pixels'"),
        ],
    )
    def test_an_unknown_key_at_any_depth_names_the_nearest(self, path: str, hint: str) -> None:
        with pytest.raises(RecipeError, match=hint) as caught:
            recipe_from(changed(path, 1), where="recipe own")
        assert "recipe own" in str(caught.value)

    @pytest.mark.parametrize("path", sorted(SMALLEST.keys() - {"prompts"}))
    def test_a_field_without_a_default_is_required(self, path: str) -> None:
        fields = {name: value for name, value in SMALLEST.items() if name != path}
        with pytest.raises(RecipeError, match=f"'{path}' is required"):
            recipe_from(fields, where="recipe own")

    def test_prompts_are_required_of_a_teacher_that_reads_text(self) -> None:
        fields = {name: value for name, value in SMALLEST.items() if name != "prompts"}
        with pytest.raises(RecipeError, match="prompts is missing: the teacher's text tower"):
            recipe_from(fields, where="recipe own")
        teacher = {"kind": "timm", "model": "resnet18", "pretrained": "a1_in1k"}
        recipe = recipe_from(fields | {"teacher": teacher, "losses": {"ism": {}}}, where="own")
        assert recipe.prompts is None

    @pytest.mark.parametrize(
        ("teacher", "kl", "message"),
        [
            ({"feature_point": "pooled"}, {}, "kd_kl wants a teacher's classes"),
            ({"feature_point": "logits", "top_k": 9}, {}, "say losses.kd_kl.top_k, at most 9"),
            ({"feature_point": "logits", "top_k": 9}, {"top_k": 10}, "9 greatest classes alone"),
            ({"feature_point": "logits", "top_k": 9}, {"top_k": 9}, None),
            ({"feature_point": "logits"}, {}, None),
        ],
    )
    def test_kd_kl_asks_for_no_more_classes_than_there_are(
        self, teacher: dict[str, Any], kl: dict[str, Any], message: str | None
    ) -> None:
        whole = {"kind": "timm", "model": "resnet50", "pretrained": "a1_in1k", **teacher}
        fields = SMALLEST | {"teacher": whole, "losses": {"kd_kl": kl}}
        if message is None:
            assert recipe_from(fields, where="recipe own").terms()
            return
        with pytest.raises(RecipeError, match=message):
            recipe_from(fields, where="recipe own")

    def test_a_teacher_without_text_has_no_further_ones(self) -> None:
        teacher = {"kind": "timm", "model": "resnet18", "pretrained": "a1_in1k"}
        fields = SMALLEST | {"losses": {"ism": {}}, "further_teachers": [teacher]}
        with pytest.raises(RecipeError, match="further_teachers are compared over anchors"):
            recipe_from(fields | {"teacher": teacher}, where="recipe own")

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            ("views", 0, "views is at least 1"),
            ("views", 1.5, "'views'"),
            ("max_skip_fraction", 1.1, "max_skip_fraction is a share"),
            ("max_skip_fraction", -0.1, "max_skip_fraction is a share"),
            ("schedule.flip", 2, "flip is a probability"),
            ("training.epochs", 0, "epochs, batch_size and accumulate are at least 1"),
            ("training.optimizer", "lion", "'training.optimizer'"),
            ("losses.csm_ce.tau", -1, "tau must be positive"),
            ("losses", {}, "no loss has a weight"),
            ("losses", None, "'losses'"),
            ("losses.csm_ce", None, r"losses\.csm_ce"),
            ("probes.run", ["knn5"], "knn5"),
            ("student.input_px", 0, "input_px is at least 1"),
            ("probes.linear.C", 0, "C is above 0"),
            ("probes.linear.max_iter", 0, "max_iter is at least 1"),
        ],
    )
    def test_a_wrong_value_is_named(self, path: str, value: Any, message: str) -> None:
        with pytest.raises(RecipeError, match=message):
            recipe_from(changed(path, value), where="recipe own")

    def test_everything_wrong_is_told_at_once(self) -> None:
        fields = changed("training.epochs", "few") | {"view": 1, "name": 3}
        with pytest.raises(RecipeError) as caught:
            recipe_from(fields, where="recipe own")
        for field in ("training.epochs", "view", "name"):
            assert field in str(caught.value)

    def test_its_errors_are_the_users(self) -> None:
        assert issubclass(RecipeError, BeamclipError)


class TestResolved:
    def full(self, tmp_path: Path) -> Recipe:
        fields = changed("schedule.crop_scale", [0.3, 1]) | {"losses": {"entmin": {"tau": 1e-9}}}
        return load_recipe(write(tmp_path, fields), ["training.weight_decay=1.0e-5"])

    def test_makes_the_same_recipe_again(self, tmp_path: Path) -> None:
        recipe = self.full(tmp_path)
        assert recipe_from(recipe.resolved(), where="test") == recipe

    def test_makes_the_same_recipe_again_after_yaml_and_after_json(self, tmp_path: Path) -> None:
        recipe = self.full(tmp_path)
        for fields in (
            yaml.safe_load(yaml.safe_dump(recipe.resolved())),
            json.loads(json.dumps(recipe.resolved(), allow_nan=False)),
        ):
            assert fields == recipe.resolved()
            assert recipe_from(fields, where="test") == recipe

    @pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
    def test_of_a_shipped_recipe_makes_it_again(self, path: Path) -> None:
        recipe = load_recipe(path.stem)
        assert recipe_from(recipe.resolved(), where="test") == recipe

    def test_says_every_field(self, tmp_path: Path) -> None:
        def assert_complete(value: Any, plain: Any) -> None:
            if dataclasses.is_dataclass(value):
                for field in dataclasses.fields(value):
                    assert_complete(getattr(value, field.name), plain[field.name])

        recipe = self.full(tmp_path)
        assert_complete(recipe, recipe.resolved())
        assert recipe.resolved()["losses"] == {"entmin": {"weight": 1.0, "tau": 1e-9}}

    def test_keeps_a_loss_that_is_switched_off(self) -> None:
        fields = changed("losses.ism", {"weight": 0})
        recipe = recipe_from(fields, where="test")
        assert recipe.resolved()["losses"] == {
            "csm_ce": {"weight": 1.0, "tau": None},
            "ism": {"weight": 0.0},
        }

    def test_changes_nothing_it_was_made_from(self) -> None:
        fields = json.loads(json.dumps(SMALLEST))
        recipe_from(fields, where="test").resolved()["training"]["epochs"] = 99
        assert fields == SMALLEST
