"""Fine-tuning learns what there is to learn, and the same every time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import ProbeError
from pipeline.glue.choices import GlueOptions
from pipeline.glue.encoder import LoadedText
from pipeline.glue.finetune import finetune, num_steps, rate
from pipeline.glue.reading import TaskData, read_task
from pipeline.glue.scores import Scores, score_task
from pipeline.glue.tokens import tokenize
from tests.glue.files import write_task

QUICK = GlueOptions(learning_rate=2e-3, epochs=12, batch_size=8)


def said(text: LoadedText, name: str, data: TaskData, spec: GlueOptions) -> dict[str, np.ndarray]:
    return finetune(
        text.encoder,
        name,
        (tokenize(text, data.train, spec.max_tokens), data.train.labels_N),
        {part: tokenize(text, found, spec.max_tokens) for part, found in data.dev.items()},
        spec,
        device=torch.device("cpu"),
        advance=lambda count, note="": None,
    )


def scores(text: LoadedText, name: str, root: Path, spec: GlueOptions = QUICK) -> Scores:
    data = read_task(root, name)
    return score_task(name, data, said(text, name, data, spec))


@pytest.mark.parametrize("name", ["sst2", "rte", "mnli"])
def test_a_rule_is_learned_of_texts_and_of_pairs(
    text: LoadedText, tmp_path: Path, name: str
) -> None:
    write_task(tmp_path, name, train=96)
    assert scores(text, name, tmp_path)["accuracy"] > 0.95


def test_numbers_are_learned(text: LoadedText, tmp_path: Path) -> None:
    write_task(tmp_path, "stsb", train=96)
    data = read_task(tmp_path, "stsb")
    found = said(text, "stsb", data, replace(QUICK, epochs=24))
    assert found[""].dtype == np.float32
    assert score_task("stsb", data, found)["spearman"] > 0.9
    assert np.abs(found[""] - data.dev[""].labels_N).mean() < 0.8  # in STS-B's own scale


def test_labels_of_chance_leave_scores_at_chance(text: LoadedText, tmp_path: Path) -> None:
    write_task(tmp_path, "sst2", train=96, dev=100, told=False)
    assert 0.3 < scores(text, "sst2", tmp_path)["accuracy"] < 0.7


def weights(text: LoadedText) -> dict[str, torch.Tensor]:
    state = text.encoder.state_dict()  # type: ignore[attr-defined]
    return {name: tensor.clone() for name, tensor in state.items()}


def test_the_same_seed_gives_the_same_and_the_encoder_stays(
    text: LoadedText, tmp_path: Path
) -> None:
    write_task(tmp_path, "stsb", train=20)
    data, before = read_task(tmp_path, "stsb"), weights(text)
    quick = GlueOptions(learning_rate=1e-3, epochs=2, batch_size=8)
    state = torch.random.get_rng_state()
    first = said(text, "stsb", data, quick)[""]
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(5)
    np.testing.assert_array_equal(said(text, "stsb", data, quick)[""], first)
    other = GlueOptions(learning_rate=1e-3, epochs=2, batch_size=8, seed=1)
    assert not np.array_equal(said(text, "stsb", data, other)[""], first)
    after = weights(text)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_rate_warms_up_and_falls_to_nothing() -> None:
    rates = [rate(step, 20, 0.1) for step in range(20)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert np.allclose(np.diff(rates[2:]), -1 / 18)
    assert rates[-1] == pytest.approx(1 / 18)
    assert rate(0, 5, 0.0) == 1
    assert num_steps(17, QUICK) == 3 * 12


def test_a_loss_that_is_no_number_is_told(text: LoadedText, tmp_path: Path) -> None:
    write_task(tmp_path, "stsb", train=20)
    wild = GlueOptions(learning_rate=1e30, epochs=2, batch_size=8, clip_norm=0.0)
    with pytest.raises(ProbeError, match="STS-B: the loss is no number after epoch"):
        scores(text, "stsb", tmp_path, wild)


def test_bf16_learns_too(text: LoadedText, tmp_path: Path) -> None:
    write_task(tmp_path, "sst2", train=48)
    spec = GlueOptions(learning_rate=2e-3, epochs=12, batch_size=8, precision="bf16")
    assert scores(text, "sst2", tmp_path, spec)["accuracy"] > 0.9
