"""The loader of stage two alone, beside what people use: views per second from 500x375 JPEGs.

The same views by meaning: random resized crop, flip, and in the second table MoCo-v2's colours and
blur, which are the ImageNet recipes'. Every loader has two processes.
"""

import io
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from PIL import Image

from benchmarks.inputs import FULL, PLAIN, cached_photos, photo
from benchmarks.measure import Row, in_turn, ratios, row
from pipeline.batches import TrainingBatches
from pipeline.cache.reader import TargetCache
from pipeline.schedule import Schedule
from pipeline.shards import find_shards

WORKERS, BATCH, SKIPPED = 2, 64, 4
PHOTOS = 4096
THEIRS = 24  # batches of a peer that are timed; ours runs through all photos
SIZES = {96: (">= 2.2", ">= 2.2", ">= 1.3"), 224: (">= 2.5", ">= 2.5", ">= 1.3")}
PEERS = ("ImageFolder, v2 on PIL", "webdataset, v2 on PIL", "torchvision.io, v2 on tensors")


def rows() -> list[Row]:
    """Measure."""
    torch.set_num_threads(1)
    found: list[Row] = []
    with TemporaryDirectory() as folder:
        files = _write_files(Path(folder) / "files")
        for schedule in (PLAIN, FULL):
            cache, shards = cached_photos(Path(folder) / schedule.name, PHOTOS, schedule)
            for size, targets in SIZES.items():
                found += _compare(cache, shards, files, schedule, size, targets)
            if schedule is PLAIN:
                found.append(_cache_share(cache, shards))
    return found


def _compare(
    cache: Path, shards: Path, files: Path, schedule: Schedule, size: int, targets: tuple[str, ...]
) -> list[Row]:
    peers: list[Callable[[], Iterable[Any]]] = [
        lambda: _image_folder(files, schedule, size),
        lambda: _webdataset(shards, schedule, size),
        lambda: _decoded_by_torchvision(files, schedule, size),
    ]
    ours, *theirs = in_turn(
        lambda: _rate(_ours(cache, shards, size), PHOTOS // BATCH),
        *(lambda p=peer: _rate(p(), THEIRS) for peer in peers),  # type: ignore[misc]
    )
    name = f"{size} px, {schedule.name}"
    found = [row(f"loader, {name}", ours, "views/s", note=f"{WORKERS} processes each")]
    for peer, rates, target in zip(PEERS, theirs, targets, strict=True):
        found.append(row(f"  {peer}", rates, "views/s"))
        wanted = target if schedule is PLAIN else ""
        found.append(row("  loader / that", ratios(ours, rates), "x", wanted))
    return found


def _rate(batches: Iterable[Any], stop: int) -> float:
    """Return views per second of the batches after the first few, to batch number `stop`."""
    iterator = iter(batches)
    for _ in islice(iterator, SKIPPED):
        pass
    began, count = perf_counter(), 0
    for _ in islice(iterator, stop - SKIPPED):
        count += BATCH
    return count / (perf_counter() - began)


def _source(cache: Path, shards: Path, size: int, workers: int) -> TrainingBatches:
    return TrainingBatches(
        TargetCache.open(cache),
        find_shards([str(shards)]),
        sizes=(size,),
        batch_size=BATCH,
        num_views=1,
        seed=0,
        workers=workers,
    )


def _ours(cache: Path, shards: Path, size: int) -> Iterable[Any]:
    source = _source(cache, shards, size, WORKERS)
    return (batch.views(torch.device("cpu"), size) for batch in source.starting_at(0, 64))


def _cache_share(cache: Path, shards: Path) -> Row:
    """Time what the loader asks of the cache, in one process."""
    source = _source(cache, shards, 224, 0)
    inner, spent = source._targets, 0.0

    class Timed:
        def targets(self, *arguments: Any) -> Any:
            return timed(inner.targets, *arguments)

        def view_params(self, *arguments: Any) -> Any:
            return timed(inner.view_params, *arguments)

    def timed(work: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal spent
        began = perf_counter()
        found = work(*arguments)
        spent += perf_counter() - began
        return found

    source._targets = Timed()
    shares = []
    for _ in range(5):
        began, spent = perf_counter(), 0.0
        for _ in source.starting_at(SKIPPED, 20):
            pass
        shares.append(100 * spent / (perf_counter() - began))
    return row("the cache's share of the loader's time, 224 px", shares, "%", "< 2")


def _transform(schedule: Schedule, size: int, of_pil: bool) -> Any:
    """Return torchvision's v2 of the same meaning."""
    from torchvision.transforms import v2

    steps: list[Any] = [
        v2.RandomResizedCrop(
            size,
            scale=schedule.crop_scale,
            ratio=schedule.crop_ratio,
            interpolation=v2.InterpolationMode.BICUBIC,
            antialias=True,
        ),
        v2.RandomHorizontalFlip(schedule.flip),
    ]
    if schedule.jitter:
        rule = schedule
        jitter = v2.ColorJitter(rule.brightness, rule.contrast, rule.saturation, rule.hue)
        sigma = tuple(s * size for s in rule.blur_sigma)
        kernel = 2 * round(0.05 * size) + 1  # a tenth of the side, as SimCLR
        steps += [
            v2.RandomApply([jitter], rule.jitter),
            v2.RandomGrayscale(rule.grayscale),
            v2.RandomApply([v2.GaussianBlur(kernel, sigma)], rule.blur),
        ]
    return v2.Compose([*steps, v2.ToImage()] if of_pil else steps)


def _image_folder(files: Path, schedule: Schedule, size: int) -> Iterable[Any]:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(str(files), _transform(schedule, size, of_pil=True))
    return DataLoader(dataset, BATCH, shuffle=True, num_workers=WORKERS)


def _webdataset(shards: Path, schedule: Schedule, size: int) -> Iterable[Any]:
    import webdataset as wds

    transform = _transform(schedule, size, of_pil=True)
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    pipeline = (
        wds.WebDataset(urls, shardshuffle=False)
        .shuffle(500)
        .decode("pil")
        .to_tuple("jpg")
        .map_tuple(transform)
        .batched(BATCH)
    )
    return wds.WebLoader(pipeline, batch_size=None, num_workers=WORKERS)  # type: ignore[no-any-return]


class _Files(torch.utils.data.Dataset[torch.Tensor]):
    """JPEG files, decoded by torchvision to tensors and transformed as such."""

    def __init__(self, files: Path, transform: Any) -> None:
        self._paths = sorted(str(path) for path in files.rglob("*.jpg"))
        self._transform = transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, place: int) -> torch.Tensor:
        from torchvision.io import ImageReadMode, decode_jpeg, read_file

        pixels = decode_jpeg(read_file(self._paths[place]), ImageReadMode.RGB)
        view: torch.Tensor = self._transform(pixels)
        return view


def _decoded_by_torchvision(files: Path, schedule: Schedule, size: int) -> Iterable[Any]:
    from torch.utils.data import DataLoader

    dataset = _Files(files, _transform(schedule, size, of_pil=False))
    return DataLoader(dataset, BATCH, shuffle=True, num_workers=WORKERS)


def _write_files(folder: Path) -> Path:
    inner = folder / "class"
    inner.mkdir(parents=True)
    for number in range(THEIRS * BATCH):
        encoded = photo(number % 32)
        assert Image.open(io.BytesIO(encoded)).size == (500, 375)
        (inner / f"{number:05d}.jpg").write_bytes(encoded)
    return folder
