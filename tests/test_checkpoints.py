"""Files of weights are read as tensors, and never as code."""

import argparse
import hashlib
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.checkpoints import file_sha256, find_weights, read_tensors, tensors_sha256
from pipeline.errors import StudentError
from tests.backbones import small_resnet

STATE = dict(small_resnet().state_dict())


def saved(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


class Hostile:
    """Runs a command where a careless reader unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


class TestReads:
    def test_a_plain_state(self, tmp_path: Path) -> None:
        assert same(read_tensors(saved(tmp_path / "w.pth", STATE)), STATE)

    def test_files_older_than_torch_1_6(self, tmp_path: Path) -> None:
        """The public files of MoCo-v2 and SwAV are of this kind, without checksums."""
        old = saved(tmp_path / "w.pth.tar", STATE, _use_new_zipfile_serialization=False)
        assert not zipfile.is_zipfile(old)
        assert same(read_tensors(old), STATE)

    def test_safetensors(self, tmp_path: Path) -> None:
        save_file(STATE, tmp_path / "w.safetensors")
        assert same(read_tensors(tmp_path / "w.safetensors"), STATE)

    def test_nested_mappings_as_dotted_names_without_optimizers(self, tmp_path: Path) -> None:
        model = small_resnet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        model(torch.zeros(1, 3, 32, 32)).sum().backward()
        optimizer.step()
        value = {
            "epoch": 200,
            "arch": "resnet50",
            "best": 0.5,
            "state_dict": OrderedDict(STATE),
            "optimizer": optimizer.state_dict(),
        }
        found = read_tensors(saved(tmp_path / "w.pth", value))
        assert found.keys() == {f"state_dict.{name}" for name in STATE}

    def test_options_that_dino_keeps_beside_its_weights(self, tmp_path: Path) -> None:
        args = argparse.Namespace(arch="vit_small", lr=0.1, clip=[1, 2])
        value = {"teacher": {f"backbone.{n}": v for n, v in STATE.items()}, "args": args}
        found = read_tensors(saved(tmp_path / "w.pth", value))
        assert found.keys() == {f"teacher.backbone.{name}" for name in STATE}

    def test_parameters_as_tensors(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "w.pth", {"a.weight": torch.nn.Parameter(torch.ones(2))})
        assert torch.equal(read_tensors(path)["a.weight"], torch.ones(2))


class TestRefuses:
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    def test_a_pickle_that_would_run_code_without_running_it(
        self, tmp_path: Path, zipped: bool
    ) -> None:
        mark = tmp_path / "was-here"
        value = {"state_dict": STATE, "extra": Hostile(mark)}
        path = saved(tmp_path / "w.pth", value, _use_new_zipfile_serialization=zipped)
        with pytest.raises(StudentError, match=r"system.*could run code.*was not read"):
            read_tensors(path)
        assert not mark.exists()

    def test_a_bare_pickle_that_would_run_code(self, tmp_path: Path) -> None:
        mark, path = tmp_path / "was-here", tmp_path / "w.pth"
        path.write_bytes(pickle.dumps(Hostile(mark)))
        with pytest.raises(StudentError, match=r"w\.pth"):
            read_tensors(path)
        assert not mark.exists()

    def test_a_whole_pickled_network(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "w.pth", small_resnet())
        with pytest.raises(StudentError, match=r"ResNet.*save its state_dict alone"):
            read_tensors(path)

    @pytest.mark.parametrize("kind", ["w.pth", "w-old.pth", "w.safetensors"])
    def test_a_file_cut_short(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / kind
        if kind.endswith("safetensors"):
            save_file(STATE, path)
        else:
            saved(path, STATE, _use_new_zipfile_serialization=kind == "w.pth")
        whole = path.read_bytes()
        for size in (len(whole) - 1, len(whole) // 2, 100, 7, 0):
            path.write_bytes(whole[:size])
            with pytest.raises(StudentError, match=r"cannot be read as weights .* fetch it again"):
                read_tensors(path)

    def test_a_flipped_bit_that_torch_would_load(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "w.pth", STATE)
        content = bytearray(path.read_bytes())
        place = content.index(STATE["layer4.0.conv1.weight"].numpy().tobytes()[:64]) + 3
        content[place] ^= 1
        path.write_bytes(content)
        torch.load(path, weights_only=True)
        with pytest.raises(StudentError, match="does not match its checksum"):
            read_tensors(path)

    @pytest.mark.parametrize("content", [b"not weights at all", random.Random(0).randbytes(5000)])
    def test_what_is_no_weights_file(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "w.pth").write_bytes(content)
        with pytest.raises(StudentError, match=r"w\.pth"):
            read_tensors(tmp_path / "w.pth")

    @pytest.mark.parametrize("value", [torch.ones(3), [torch.ones(3)], {"epoch": 3}, {}])
    def test_a_file_without_named_tensors(self, tmp_path: Path, value: Any) -> None:
        with pytest.raises(StudentError, match="expected a state_dict"):
            read_tensors(saved(tmp_path / "w.pth", value))


class TestFindWeights:
    def test_a_file_is_itself(self, tmp_path: Path) -> None:
        (tmp_path / "any.name").touch()
        assert find_weights(tmp_path / "any.name") == tmp_path / "any.name"

    @pytest.mark.parametrize(
        "name", ["backbone.safetensors", "student.safetensors", "model.safetensors"]
    )
    def test_a_folder_has_one_that_is_meant(self, tmp_path: Path, name: str) -> None:
        for other in (name, "student_raw.safetensors", "checkpoint-000000007.pt", "x.bin"):
            (tmp_path / other).touch()
        assert find_weights(tmp_path).name == name

    def test_a_lone_file_of_a_folder_is_meant(self, tmp_path: Path) -> None:
        for name in ("swav_800ep_pretrain.pth.tar", "README.md"):
            (tmp_path / name).touch()
        assert find_weights(tmp_path).name == "swav_800ep_pretrain.pth.tar"

    def test_of_several_none_is_guessed(self, tmp_path: Path) -> None:
        for name in ("a.pth", "b.pth"):
            (tmp_path / name).touch()
        with pytest.raises(StudentError, match=r"a\.pth, b\.pth; name the file itself"):
            find_weights(tmp_path)

    def test_an_empty_folder_and_a_missing_path_are_errors(self, tmp_path: Path) -> None:
        with pytest.raises(StudentError, match="Found: none"):
            find_weights(tmp_path)
        with pytest.raises(StudentError, match="no such file or folder; expected a file"):
            find_weights(tmp_path / "Timm")

    def test_a_folder_that_is_not_finished_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoint-000000007.pt").touch()
        with pytest.raises(StudentError, match="is not finished"):
            find_weights(tmp_path)


def test_the_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"weights" * 300_000)
    expected = hashlib.sha256(b"weights" * 300_000).hexdigest()
    assert file_sha256(tmp_path / "w") == expected


def test_the_digest_of_tensors_knows_names_types_shapes_and_values() -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.tensor(1)}
    others = [
        {**tensors, "a": torch.zeros(3, 2)},
        {**tensors, "a": torch.zeros(2, 3, dtype=torch.float16)},
        {**tensors, "b": torch.tensor(2)},
        {"a": tensors["a"], "c": tensors["b"]},
    ]
    digests = {tensors_sha256(other) for other in [tensors, *others]}
    assert len(digests) == 5
    assert tensors_sha256(dict(reversed(tensors.items()))) in digests
