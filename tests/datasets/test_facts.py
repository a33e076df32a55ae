"""What is said of each dataset is said once, and agrees with what its command does."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.datasets.known import DATASETS
from pipeline.prompt_file import load_prompts

DATA = Path(__file__).parents[2] / "data"
FACTS = sorted(path.stem for path in (DATA / "datasets").glob("*.yaml"))
FIELDS = {"name", "source", "license", "classes", "splits", "files", "download", "prompts", "note"}


def facts(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((DATA / f"datasets/{name}.yaml").read_text(encoding="utf-8")))


def test_every_known_dataset_has_its_facts() -> None:
    assert set(FACTS) == DATASETS.keys() - {"clip-benchmark"}


@pytest.mark.parametrize("name", FACTS)
def test_facts_are_complete_and_stand_in_the_table(name: str) -> None:
    found = facts(name)
    assert found.keys() == FIELDS
    assert found["name"] == name
    splits = found["splits"]
    train = f"{splits['train']:,}"
    if "train-unlabelled" in splits:
        train += f" + {splits['train-unlabelled']:,} unlabelled"
    counts = [train, *(f"{splits[s]:,}" if s in splits else "-" for s in ("val", "test"))]
    cells = [
        f"`{name}`",
        " / ".join(counts),
        str(found["classes"] or "-"),
        "yes" if found["download"] else "`--from`",
        found["license"],
    ]
    assert f"| {' | '.join(cells)} |" in (DATA / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FACTS)
def test_prompts_of_a_dataset_have_its_classes(name: str) -> None:
    found = facts(name)
    if found["prompts"]:
        assert len(load_prompts(found["prompts"]).classes) == found["classes"]


@pytest.mark.parametrize("name", FACTS)
def test_counts_are_those_of_the_commands_help(name: str) -> None:
    about = DATASETS[name].about
    for count in facts(name)["splits"].values():
        assert f"{count:,}" in about or name in ("imagenet-21k", "cc3m", "cc12m")
