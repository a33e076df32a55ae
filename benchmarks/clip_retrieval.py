"""Our host side beside the reader and preprocessing of clip-retrieval, one view of each sample.

clip-retrieval and the webdataset that it asks for go to a folder of their own, without the rest of
what they depend on: its reader needs torch and Pillow only.
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.host import BATCH, CORES, HostSide
from benchmarks.measure import Row, in_turn, ratios, row
from pipeline.schedule import EvalSchedule

RELEASE = "clip-retrieval==2.45.0"
FOLDER = Path("data/peers/clip-retrieval")
SAMPLES = 2000
_READ = """
import importlib.util, sys, time, warnings
import open_clip
warnings.simplefilter("ignore")  # no memory to pin without a GPU
place, size, batch, workers, *shards = sys.argv[1:]
spec = importlib.util.spec_from_file_location("reader", place)
reader = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reader)
batches = reader.WebdatasetReader(
    sampler=lambda urls: urls,
    preprocess=open_clip.image_transform(int(size), is_train=False),
    tokenizer=None,
    input_dataset=shards,
    batch_size=int(batch),
    num_prepro_workers=int(workers),
    enable_text=False,
)
began = time.perf_counter()
count = sum(len(batch["image_tensor"]) for batch in batches)
print(count, count / (time.perf_counter() - began))
"""


def rows() -> list[Row]:
    """Measure; without a row where clip-retrieval cannot be installed."""
    if not _installed():
        print(f"{RELEASE} could not be installed: no row", file=sys.stderr)
        return []
    with TemporaryDirectory() as folder:
        host = HostSide(Path(folder), SAMPLES)
        host.run(1)  # starts the processes
        crops, evals, theirs = in_turn(
            lambda: host.run(1),
            lambda: host.run(1, schedule=EvalSchedule()),
            lambda: _their_rate(host.shards),
        )
    note = f"{CORES} workers, WebdatasetReader, open_clip's preprocessing"
    return [
        row("clip-retrieval: views/s", theirs, "/s", note=note),
        row("host side, V=1: views/s", crops, "/s", note=f"{CORES} renderers, random crops"),
        row("host side / clip-retrieval, V=1", ratios(crops, theirs), "x", ">= 2"),
        row("the same, eval views", ratios(evals, theirs), "x", note="its very pixels, by Pillow"),
    ]


def _installed() -> bool:
    if not FOLDER.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*command, "--target", str(FOLDER), RELEASE, "webdataset<0.3"], check=False
        )
        return done.returncode == 0
    return True


def _their_rate(shards: Path) -> float:
    """Return views per second, of a process of its own that has imported all it needs."""
    reader = FOLDER / "clip_retrieval" / "clip_inference" / "reader.py"
    arguments = [str(reader), "224", str(BATCH), str(CORES), *map(str, sorted(shards.glob("*")))]
    done = subprocess.run(
        [sys.executable, "-c", _READ, *arguments],
        env={**os.environ, "PYTHONPATH": str(FOLDER)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    count, rate = done.stdout.split()
    assert int(count) == SAMPLES, count
    return float(rate)
