"""The text encoder of a run is fine-tuned as any other, and the run stays as it is."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import ProbeError, RunError, StudentError
from pipeline.glue.encoder import LoadedText
from pipeline.glue.reading import Examples
from pipeline.glue.run import load_run
from pipeline.glue.tokens import tokenize
from pipeline.recipe import Recipe, load_recipe
from pipeline.rundir import RunDir
from pipeline.shared.reader import text_reader
from pipeline.stage_two import rebuild_student
from tests.conftest import Invoke
from tests.glue.files import title, write_task
from tests.runs import alone, small_recipe, train

# The words that decide, in place of those that the run's tokenizer has no pieces of; and others in
# place of those that it would take to pieces, so that no pair is too long.
KNOWN = {"awful": "square", "great": "words", "ran": "cat", "rain": "cat", "on": "cat"}


@pytest.fixture(scope="module")
def recipe(shared_recipe: Path) -> Recipe:
    return load_recipe(str(shared_recipe), ["training.epochs=1"])


@pytest.fixture(scope="module")
def run(
    vision_cache: Path,
    captioned_shards: Path,
    recipe: Recipe,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    with alone(folder / "scratch"):
        train(recipe, vision_cache, captioned_shards, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def loaded(run: Path) -> LoadedText:
    return load_run(run)


def examples(firsts: Sequence[str], seconds: Sequence[str] = ()) -> Examples:
    return Examples(tuple(firsts), tuple(seconds), np.zeros(len(firsts)), 0, "")


def write_known(root: Path, name: str, train: int) -> None:
    write_task(root, name, train=train)
    for path in (root / title(name)).iterdir():
        text = path.read_text(encoding="utf-8")
        told = re.sub(r"\w+", lambda word: KNOWN.get(word[0], word[0]), text)
        path.write_text(told, encoding="utf-8")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_learns_and_the_run_stays(beamclip: Invoke, run: Path, tmp_path: Path) -> None:
    for name in ("sst2", "rte"):
        write_known(tmp_path, name, 96)
    before = contents(run)
    done = beamclip(
        *("glue", "--run", run, "--data", tmp_path, "--tasks", "sst2,rte", "--json"),
        *("--device", "cpu", "--set", "learning_rate=0.002", "--set", "epochs=12"),
        *("--set", "batch_size=8"),
    )
    assert done.code == 0, done.err
    results = json.loads(done.out)
    assert list(results["scores"]) == ["sst2", "rte"]
    assert all(found["accuracy"] > 0.95 for found in results["scores"].values())
    assert results["counts"]["rte"]["train"]["truncated"] == 0
    assert results["text"]["run"] == str(run)
    assert results["text"]["weights"] == "student.safetensors"
    assert results["text"]["types"].startswith("ignored")
    assert results["text"]["trained_on_tokens"] == 16
    assert contents(run) == before


def test_it_is_the_runs_own_encoder_with_its_ema_weights(
    run: Path, recipe: Recipe, loaded: LoadedText
) -> None:
    text = rebuild_student(RunDir(run), recipe).eval().text
    assert isinstance(text, torch.nn.Module)
    reader = text_reader(recipe.student.shared)
    texts = ["Square 3 in words of kind 1.", "in words"]
    batch = reader.batch(reader.tokenise(texts))
    tokens_BL, mask_BL, types_BL = tokenize(loaded, examples(texts), 128).batch([0, 1])
    places = tokens_BL.shape[1]
    assert torch.equal(tokens_BL, batch.tokens_BL[:, :places])
    assert types_BL is None
    encoder = loaded.encoder.eval()  # type: ignore[attr-defined]
    with torch.inference_mode():
        states_BLE = encoder(tokens_BL, mask_BL, torch.ones_like(tokens_BL))
        expected_BLE = text(batch.tokens_BL, batch.mask_BL)[:, :places]
    assert states_BLE.shape == (2, places, loaded.encoder.width)
    torch.testing.assert_close(states_BLE[mask_BL], expected_BLE[mask_BL])
    raw = RunDir(run).load_weights("student_raw")
    name = next(iter(text.state_dict()))
    assert not torch.equal(raw[f"text.{name}"], encoder.state_dict()[f"text.{name}"])


def test_a_mark_within_a_text_is_text_and_pairs_are_cut_at_the_encoders_bound(
    recipe: Recipe, loaded: LoadedText
) -> None:
    reader = text_reader(recipe.student.shared)
    marked = "in [SEP] words [CLS]"
    (own,) = tokenize(loaded, examples([marked]), 128).tokens
    assert own.tolist() == [token for token in reader.tokenise([marked])[0].tolist() if token]
    assert loaded.encoder.max_positions == reader.files.num_places
    pair = tokenize(loaded, examples(["words " * 99], ["square"]), 128)
    assert pair.lengths_N().tolist() == [reader.files.num_places]
    assert pair.truncated == 1
    names = loaded.tokenizer.convert_ids_to_tokens(pair.tokens[0])  # type: ignore[attr-defined]
    assert names[0] == "[CLS]"
    assert names.count("[SEP]") == 2


# --- what is refused -----------------------------------------------------------------------------


def test_a_run_that_reads_no_texts_is_refused(
    vision_cache: Path, captioned_shards: Path, vision_recipe: Path, tmp_path: Path
) -> None:
    own = small_recipe(vision_recipe, "training.epochs=1")
    train(own, vision_cache, captioned_shards, tmp_path / "run")
    with pytest.raises(StudentError, match=r"test_resnet, sees images and reads no texts: name a"):
        load_run(tmp_path / "run")


def test_a_tokenizer_that_marks_no_pairs_is_refused(run: Path, tmp_path: Path) -> None:
    file = Path(shutil.copytree(run, tmp_path / "run")) / "text" / "tokenizer.json"
    told = json.loads(file.read_text(encoding="utf-8"))
    told["post_processor"]["pair"] = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    file.write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(ProbeError, match="puts 0 marks around a pair of texts"):
        load_run(tmp_path / "run")


def test_what_is_no_finished_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        load_run(tmp_path)
    begun = Path(shutil.copytree(run, tmp_path / "begun"))
    (begun / "student.safetensors").unlink()
    with pytest.raises(RunError, match="is not finished"):
        load_run(begun)


def test_a_text_encoder_is_named_once(beamclip: Invoke, tmp_path: Path) -> None:
    for words in ((), ("--text", "x", "--run", tmp_path)):
        outcome = beamclip("glue", *words, "--data", tmp_path)
        assert outcome.code == 2
        assert "give --text FOLDER|NAME, or --run RUN" in outcome.err
