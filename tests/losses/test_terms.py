"""Losses are read from recipes by name, strictly."""

import math
from typing import Any

import pytest

from pipeline.errors import RecipeError
from pipeline.losses import WeightOptions, parse_terms, resolve_tau


def test_tau_is_the_teachers_own_unless_the_recipe_says_a_number() -> None:
    fields: dict[str, dict[str, Any]] = {
        "csm_ce": {},
        "entmin": {"tau": 0.02},
        "kd": {"T": 4},
        "crd": {},
        "ism": {"weight": 10},
    }
    by_name = {t.name: t.spec for t in resolve_tau(parse_terms(fields, where="test"), 12.5)}
    assert by_name["csm_ce"].tau == pytest.approx(0.08)
    assert by_name["entmin"].tau == 0.02
    assert by_name["kd"].tau == pytest.approx(0.08)
    assert by_name["kd"].T == 4
    assert by_name["crd"].tau == 0.07
    assert by_name["ism"] == WeightOptions(weight=10)


def test_weight_zero_switches_a_loss_off() -> None:
    terms = parse_terms({"csm_ce": {"weight": 0}, "ism": {"weight": 10}}, where="test")
    assert [(term.name, term.spec.weight) for term in terms] == [("ism", 10)]


def test_terms_keep_the_order_of_the_recipe() -> None:
    fields: dict[str, dict[str, Any]] = {"ism": {}, "csm_ce": {}, "entmin": {}}
    assert [term.name for term in parse_terms(fields, where="test")] == list(fields)


@pytest.mark.parametrize("losses", [{}, {"ism": {"weight": 0}}, {"ism": {"weight": 0.0}}])
def test_no_loss_at_all_is_an_error(losses: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"no loss has a weight: expected one of csm_ce, entmin"):
        parse_terms(losses, where="test")


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"csm-ce": {}}, r"unknown loss 'csm-ce': did you mean 'csm_ce'\?"),
        ({"entropy": {}}, r"unknown loss 'entropy'.*(entmin|csm_ce)"),
        ({"csm_ce": {"taus": 1}}, r"losses\.csm_ce.*\n.*'taus': did you mean 'tau'\?"),
        ({"ism": {"tau": 1}}, r"losses\.ism.*\n.*unknown key 'tau'"),
        ({"csm_ce": {"tau": 0}}, "tau must be positive, not 0"),
        ({"csm_ce": {"tau": -0.1}}, "tau must be positive, not -0.1"),
        ({"csm_ce": {"tau": math.nan}}, "'tau': input should be a finite number"),
        ({"entmin": {"tau": math.inf}}, "'tau': input should be a finite number"),
        ({"csm": {}}, "unknown loss 'csm'"),
        ({"kd": {"T": 0}}, r"losses\.kd.*\n.*T must be positive, not 0"),
        ({"kd": {"tau": -1}}, "tau must be positive, not -1"),
        ({"kd": {"t": 4}}, r"unknown key 't'.*"),
        ({"kd": {"reduction": "batchmean"}}, r"'reduction'.*'sum' or 'mean'.*'batchmean'"),
        ({"kd": {"direction": "both"}}, r"'direction'.*'forward' or 'reverse'.*'both'"),
        ({"crd": {"tau": 0}}, "tau must be positive, not 0"),
        ({"crd": {"tau": None}}, "'tau'"),
        ({"crd": {"bank": -1}}, "bank is at least 0, not -1"),
        ({"crd": {"bank": 1.5}}, "'bank'"),
        ({"seed": {"bank": 0}}, "bank must be positive, not 0"),
        ({"seed": {"tau_teacher": 0}}, "tau_teacher must be positive, not 0"),
        ({"seed": {"tau_student": -2}}, "tau_student must be positive, not -2"),
        ({"seed": {"tau": 1}}, "unknown key 'tau': valid: bank, tau_student, tau_teacher"),
        ({"rkd": {"distance": -1}}, "distance is at least 0, not -1"),
        ({"rkd": {"angle": -1}}, "angle is at least 0, not -1"),
        ({"rkd": {"angle": 0, "distance": 0}}, "distance or angle is above 0"),
        (
            {"supervised": {"label_smoothing": 1}},
            "label_smoothing is at least 0 and below 1, not 1",
        ),
        ({"supervised": {"label_smoothing": -0.1}}, "label_smoothing is at least 0 and below 1"),
        ({"itc": {"levels": []}}, "levels are output, inner or both, each once, not"),
        ({"itc": {"levels": ["inner", "inner"]}}, "levels are output, inner or both, each once"),
        ({"itc": {"levels": ["outer"]}}, "'levels.0'.*'output' or 'inner'.*'outer'"),
        ({"itc": {"levels": "output"}}, "'levels'"),
        ({"itc": {"tau": 0.07}}, "unknown key 'tau'"),
        ({"kd_bank": {"bank": -1}}, "bank is at least 0, not -1"),
        ({"kd_inbatch": {"bank": 5}}, "unknown key 'bank'"),
        ({"kd_mse": {"mask_same_image": True}}, "unknown key 'mask_same_image'"),
        ({"kd_kl": {"T": 0}}, "T must be positive, not 0"),
        ({"kd_kl": {"top_k": 0}}, "top_k must be positive, not 0"),
        ({"kd_kl": {"top_k": 1.5}}, "'top_k'"),
        ({"ism": {"weight": math.nan}}, "'weight': input should be a finite number"),
        ({"ism": {"weight": "much"}}, "'weight'"),
    ],
)
def test_a_wrong_loss_or_option_is_named(losses: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        parse_terms(losses, where="recipe r")
    assert "recipe r" in str(caught.value)
