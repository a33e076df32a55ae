"""Options of a model of images and texts."""

import pytest

from pipeline.errors import RecipeError
from pipeline.options import parse
from pipeline.shared.contract import SharedOptions


def test_the_defaults_are_the_documents() -> None:
    spec = SharedOptions()
    assert (spec.image_layers, spec.text_layers, spec.depth) == (6, 6, 1)
    assert (spec.max_tokens, spec.layer_scale, spec.token_type_scale) == (64, 0.2, 1e-5)
    assert (spec.text, spec.text_init, spec.mlp_ratio) == ("bert-base-uncased", "pretrained", 4)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"image": ""}, "image is the name of an encoder, not empty"),
        ({"text": ""}, "text is the name of an encoder, not empty"),
        ({"image_layers": 0}, "image_layers is at least 1, not 0"),
        ({"text_layers": 0}, "text_layers is at least 1, not 0"),
        ({"max_tokens": 2}, "max_tokens is at least 3, not 2"),
        ({"depth": 0}, "depth is at least 1, not 0"),
        ({"heads": 0}, "heads is at least 1, not 0"),
        ({"mlp_ratio": 0}, "mlp_ratio is above 0, not 0"),
        ({"layer_scale": -1}, "layer_scale is above 0, not -1"),
        ({"token_type_scale": 0}, "token_type_scale is above 0, not 0"),
        ({"text_init": "random"}, "'pretrained' or 'scratch'"),
        ({"layers": 6}, "unknown key 'layers'"),
    ],
)
def test_a_wrong_value_is_told(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        parse(SharedOptions, wrong, where="recipe")
