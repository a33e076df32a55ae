"""GLUE's files: nine layouts, no quotes, and nothing left out in silence."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError, ProbeError
from pipeline.glue.reading import check_files, read_task
from pipeline.glue.tasks import TASKS, chosen_tasks
from tests.glue.files import NAMES, title, values, write_task

DEV = {name: {""} for name in NAMES} | {"mnli": {"matched", "mismatched"}}


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_is_read(name: str, tmp_path: Path) -> None:
    folder = write_task(tmp_path, name, train=12, dev=5)
    data = read_task(tmp_path, name)
    assert len(data.train) == 12
    assert {part: len(found) for part, found in data.dev.items()} == dict.fromkeys(DEV[name], 5)
    assert data.train.broken == 0
    assert data.train.sha256 == sha256((folder / "train.tsv").read_bytes()).hexdigest()
    for found in (data.train, *data.dev.values()):
        assert len(found.seconds) == (0 if name in ("cola", "sst2") else len(found))
        assert all(len(text.split()) == 5 for text in (*found.firsts, *found.seconds))
    labels = data.train.labels_N
    own = values(name)
    if name == "stsb":
        assert labels.dtype == np.float32
        assert labels.tolist() == [float(own[i % len(own)]) for i in range(12)]
    else:
        assert labels.dtype == np.int64
        order = TASKS[name].labels
        assert labels.tolist() == [order.index(own[i % len(own)]) for i in range(12)]


def test_the_text_that_decides_is_the_second_of_a_pair(tmp_path: Path) -> None:
    write_task(tmp_path, "qnli", train=2)
    found = read_task(tmp_path, "qnli").train
    assert not {"great", "awful"} & set(" ".join(found.firsts).split())
    assert "great" in found.seconds[0]
    assert "awful" in found.seconds[1]


def write(path: Path, *lines: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_quotes_and_odd_breaks_are_text(tmp_path: Path) -> None:
    """As in QNLI and MRPC, where a quote opens and never closes."""
    for file in ("train.tsv", "dev.tsv"):
        write(
            tmp_path / "RTE" / file,
            b"index\tsentence1\tsentence2\tlabel\r",
            b'0\t"He said so\tshe "did" not"\tentailment\r',
            "1\tone\u2028line\x85here\tnaïve \t\tentailment".replace(" \t\t", "\t").encode(),
            b"2\t'' a\tb\x0bc\tnot_entailment",
        )
    found = read_task(tmp_path, "rte").train
    assert found.broken == 0
    assert found.firsts == ('"He said so', "one\u2028line\x85here", "'' a")
    assert found.seconds == ('she "did" not"', "naïve", "b\x0bc")
    assert found.labels_N.tolist() == [0, 0, 1]


def test_broken_lines_are_left_out_counted_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_task(tmp_path, "qqp")
    path = write(
        tmp_path / "QQP/train.tsv",
        b"id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        b"0\t1\t2\twhy\thow\t1",
        b"3\t4\tonly these",
        b"0\t1\t2\t\twho\t0",  # an empty text is a text
        b"0\t1\t2\ta\tb\t2",
        b"0\t1\t2\t\xff\tb\t1",
        b"0\t1\t2\ta\tb\tc\t1",
    )
    found = read_task(tmp_path, "qqp").train
    assert found.firsts == ("why", "")
    assert found.labels_N.tolist() == [1, 0]
    assert found.broken == 4
    assert f"{path}: left out 4 broken lines, first line 3 (3 columns, not 6)" in caplog.text


@pytest.mark.parametrize("label", [b"5.1", b"-0.1", b"nan", b"", b"high"])
def test_a_score_that_is_none_is_broken(tmp_path: Path, label: bytes) -> None:
    path = write_task(tmp_path, "stsb", train=3) / "train.tsv"
    path.write_bytes(path.read_bytes() + b"\t".join([b"9"] * 9) + b"\t" + label + b"\n")
    found = read_task(tmp_path, "stsb").train
    assert (len(found), found.broken) == (3, 1)


def test_a_file_of_broken_lines_alone_is_an_error(tmp_path: Path) -> None:
    write_task(tmp_path, "cola")
    write(tmp_path / "CoLA/dev.tsv", b"sentence\tlabel", b"A cat sat.\t1")
    with pytest.raises(DataError, match=r"no example, and 2 broken lines, first line 1 \(2 col"):
        read_task(tmp_path, "cola")


def test_other_columns_are_named(tmp_path: Path) -> None:
    write_task(tmp_path, "sst2")
    write(tmp_path / "SST-2/dev.tsv", b"text\tlabel", b"A cat sat.\t1")
    with pytest.raises(DataError, match=r"first line lacks 'sentence'; expected the columns"):
        read_task(tmp_path, "sst2")


# --- MRPC as Microsoft has it --------------------------------------------------------------------


def test_raw_mrpc_is_parted_by_the_ids_of_dev(tmp_path: Path) -> None:
    folder = write_task(tmp_path, "mrpc", train=8)
    whole = read_task(tmp_path, "mrpc").train
    raw = (folder / "train.tsv").rename(folder / "msr_paraphrase_train.txt")
    raw.write_bytes(raw.read_bytes() + b"no line\n")
    (folder / "dev.tsv").unlink()
    write(folder / "dev_ids.tsv", b"2\t3", b"5\t6", b"6\t5")
    check_files(tmp_path, ["mrpc"])
    data = read_task(tmp_path, "mrpc")
    assert data.dev[""].firsts == (whole.firsts[2], whole.firsts[5])
    assert data.train.firsts == tuple(whole.firsts[i] for i in (0, 1, 3, 4, 6, 7))
    assert data.dev[""].labels_N.tolist() == [0, 1]
    assert (data.train.broken, data.dev[""].broken) == (1, 0)
    write(folder / "dev_ids.tsv", b"99\t98")
    with pytest.raises(DataError, match="names none of the pairs"):
        read_task(tmp_path, "mrpc")


# --- what is not there ---------------------------------------------------------------------------


def test_every_missing_file_of_every_task_is_named_at_once(tmp_path: Path) -> None:
    for name in NAMES:
        write_task(tmp_path, name)
    check_files(tmp_path, NAMES)
    (tmp_path / "MNLI/dev_mismatched.tsv").unlink()
    (tmp_path / "MRPC/train.tsv").unlink()
    for file in (tmp_path / "WNLI").iterdir():
        file.unlink()
    with pytest.raises(DataError) as caught:
        check_files(tmp_path, NAMES)
    message = str(caught.value)
    assert f"lacks 4 files of what was asked ({', '.join(NAMES)}): " in message
    for lacking in ("MNLI/dev_mismatched.tsv", "MRPC/train.tsv", "WNLI/train.tsv", "WNLI/dev.tsv"):
        assert lacking in message
    assert "msr_paraphrase_train.txt and dev_ids.tsv for both" in message
    assert "https://gluebenchmark.com/tasks" in message
    assert "data/README.md" in message
    assert "QQP" not in message
    check_files(tmp_path, ["qqp", "cola"])


def test_tasks_are_known_by_either_name() -> None:
    assert chosen_tasks(None) == NAMES
    assert chosen_tasks(["SST-2", "rte", "sst2", title("stsb")]) == ["sst2", "rte", "stsb"]
    with pytest.raises(ProbeError, match="no GLUE task 'mnlo': did you mean 'mnli'"):
        chosen_tasks(["rte", "mnlo"])
