"""Fixtures: a text encoder's folder."""

from pathlib import Path

import pytest

from tests.shared.encoders import make_text_encoder


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of three layers, as wide as the test ViT; read it, never change it."""
    return make_text_encoder(tmp_path_factory.mktemp("text") / "bert")
