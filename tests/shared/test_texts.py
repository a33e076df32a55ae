"""The text encoder: the first layers of a model of transformers, with its weights or none."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import StudentError
from pipeline.shared.library import quiet
from pipeline.shared.reader import text_reader
from pipeline.shared.texts import TextEncoder, build_text_encoder
from tests.shared.encoders import FAMILIES, TEXTS, make_text_encoder, options_of


def build(folder: Path, layers: int = 2, init: str = "pretrained", seed: int = 0) -> TextEncoder:
    files = text_reader(options_of(folder, text_layers=layers)).files
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_text_encoder(files, init).eval()


def tokens(folder: Path) -> tuple[Tensor, Tensor]:
    reader = text_reader(options_of(folder))
    batch = reader.batch(reader.tokenise(TEXTS))
    return batch.tokens_BL, batch.mask_BL


@pytest.mark.parametrize("family", FAMILIES)
def test_it_gives_what_the_whole_model_has_after_those_layers(tmp_path: Path, family: str) -> None:
    folder = make_text_encoder(tmp_path / family, family)
    encoder, (tokens_BL, mask_BL) = build(folder), tokens(folder)
    with quiet():
        whole = transformers.AutoModel.from_pretrained(folder)
    with torch.inference_mode():
        found = encoder(tokens_BL, mask_BL)
        wanted = whole(tokens_BL, mask_BL.long(), output_hidden_states=True).hidden_states[2]
    assert found.shape == (4, 12, 64)
    torch.testing.assert_close(found[mask_BL], wanted[mask_BL])
    assert not any("pooler" in name for name in encoder.state_dict())


def test_weights_saved_with_a_head_are_the_same_weights(text_encoder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(text_encoder, tmp_path / "masked"))
    with quiet():
        model = transformers.AutoModelForMaskedLM.from_pretrained(text_encoder)
        model.save_pretrained(folder)
    assert any(name.startswith("bert.") for name in load_file(folder / "model.safetensors"))
    one, other = build(text_encoder), build(folder)
    for name, value in one.state_dict().items():
        assert value.equal(other.state_dict()[name]), name
    assert one.started_from is not None
    assert other.started_from is not None
    assert one.started_from["sha256"] == other.started_from["sha256"]


def test_a_missing_tensor_is_an_error_never_a_random_one(
    text_encoder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(text_encoder, tmp_path / "less"))
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(StudentError, match=r"lack 1 tensors \(encoder\.layer\.1\.output"):
        build(folder)
    build(folder, layers=1)  # which does not want it


def test_missing_or_damaged_weights_are_an_error(text_encoder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(text_encoder, tmp_path / "bad"))
    (folder / "model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(StudentError, match="cannot load text encoder"):
        build(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(StudentError, match="cannot load text encoder"):
        build(folder)
    assert build(folder, init="scratch").started_from is None


def test_weights_from_scratch_are_the_seeds(text_encoder: Path) -> None:
    one, same, other = (build(text_encoder, init="scratch", seed=seed) for seed in (0, 0, 1))
    name = "model.encoder.layer.0.output.dense.weight"
    assert one.state_dict()[name].equal(same.state_dict()[name])
    assert not one.state_dict()[name].equal(other.state_dict()[name])
    assert not one.state_dict()[name].equal(build(text_encoder).state_dict()[name])


def test_loading_says_nothing(
    text_encoder: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    build(text_encoder)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_behind_a_text_does_not_show_in_it(tmp_path: Path, family: str) -> None:
    folder = make_text_encoder(tmp_path / family, family)
    encoder, (tokens_BL, mask_BL) = build(folder), tokens(folder)
    short = int(mask_BL[0].sum())
    with torch.inference_mode():
        together = encoder(tokens_BL, mask_BL)[0, :short]
        alone = encoder(tokens_BL[:1, :short], mask_BL[:1, :short])[0]
        filled_BL = tokens_BL.masked_fill(~mask_BL, 7)
        filled = encoder(filled_BL, mask_BL)[0, :short]
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-6)
    torch.testing.assert_close(together, filled, rtol=0, atol=0)


def test_without_transformers_the_message_says_what_to_install(text_encoder: Path) -> None:
    code = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("transformers", "tokenizers"):
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocked())
from pipeline.errors import LibraryError
from pipeline.shared.contract import SharedOptions
from pipeline.shared.student import build_shared
try:
    build_shared(SharedOptions(text={str(text_encoder)!r}), input_px=32, seed=0)
except LibraryError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'beamclip[shared]'" in result.stdout, result.stderr
