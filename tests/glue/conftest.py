"""What the tests of GLUE share: a tiny BERT."""

from pathlib import Path

import pytest

from pipeline.glue.encoder import LoadedText, load_text
from tests.glue.encoders import tiny_bert


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("text") / "bert")


@pytest.fixture(scope="session")
def text(bert: Path) -> LoadedText:
    return load_text(str(bert))
