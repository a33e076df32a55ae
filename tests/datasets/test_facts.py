"""What is said of each dataset is said once, and agrees with what its command does."""

from pathlib import Path

import pytest

from pipeline.datasets.facts import Facts, facts_of
from pipeline.datasets.known import DATASETS
from pipeline.prompt_file import load_prompts
from tests.conftest import Invoke

DATA = Path(__file__).parents[2] / "data"
FACTS = sorted(path.stem for path in (DATA / "datasets").glob("*.yaml"))


def facts(name: str) -> Facts:
    found = facts_of(name)
    assert found is not None
    return found


def size(count: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if count >= unit:
            return f"{count / unit:.{1 if name == 'GB' else 0}f} {name}"
    return f"{count / 1000:.0f} kB"


def test_every_known_dataset_has_its_facts() -> None:
    assert set(FACTS) == DATASETS.keys() - {"clip-benchmark"}


@pytest.mark.parametrize("name", FACTS)
def test_facts_are_complete_and_stand_in_the_table(name: str) -> None:
    found = facts(name)
    assert found.name == name
    assert found.source
    assert found.license
    assert set(found.bytes) <= set(found.files)
    assert found.images == sum(found.splits.values())
    splits = found.splits
    train = f"{splits['train']:,}"
    if "train-unlabelled" in splits:
        train += f" + {splits['train-unlabelled']:,} unlabelled"
    counts = [train, *(f"{splits[s]:,}" if s in splits else "-" for s in ("val", "test"))]
    sizes = {file: f" ({size(found.bytes[file])})" for file in found.bytes}
    cells = [
        f"`{name}`",
        " / ".join(counts),
        str(found.classes or "-"),
        "yes" if found.download else "`--from`",
        ", ".join(f"{file}{sizes.get(file, '')}" for file in found.files) or "-",
        found.source,
        found.license,
    ]
    assert f"| {' | '.join(cells)} |" in (DATA / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FACTS)
def test_prompts_of_a_dataset_have_its_classes(name: str) -> None:
    found = facts(name)
    if found.prompts:
        assert len(load_prompts(found.prompts).classes) == found.classes


@pytest.mark.parametrize("name", FACTS)
def test_counts_are_those_of_the_commands_help(name: str) -> None:
    about = DATASETS[name].about
    for count in facts(name).splits.values():
        assert f"{count:,}" in about or name in ("imagenet-21k", "cc3m", "cc12m")


@pytest.mark.parametrize("name", [name for name in FACTS if not facts(name).download])
def test_a_set_that_has_to_be_brought_says_where_it_comes_from(
    name: str, tmp_path: Path, beamclip: Invoke
) -> None:
    outcome = beamclip("data", name, "--out", tmp_path / "out")
    assert outcome.code == 1
    assert f"it comes from {facts(name).source}" in outcome.err
    assert facts(name).files[0] in outcome.err
    assert list(tmp_path.iterdir()) == []
