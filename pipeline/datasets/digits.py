"""scikit-learn's bundled digits: scans of handwritten digits, without a download."""

from functools import partial
from hashlib import blake2b

from pipeline.datasets.pixels import png
from pipeline.datasets.sets import Dataset, Pairs, Split

_NUM_TEST = 540
_PX = 32


def digits() -> Dataset:
    """Return the digits: 1,257 train and 540 test images, 32 px PNG.

    The scans are 8x8 with 17 grey levels; they are enlarged so that a crop has somewhere to move.
    The split is fixed: the 540 samples whose index hashes lowest are the test set.
    """
    from sklearn.datasets import load_digits

    count = len(load_digits().target)
    order = sorted(range(count), key=lambda i: blake2b(str(i).encode()).digest())
    chosen = {"test": sorted(order[:_NUM_TEST]), "train": sorted(order[_NUM_TEST:])}
    return Dataset(
        tuple(
            Split(name, partial(_samples, indices), len(indices))
            for name, indices in chosen.items()
        )
    )


def _samples(indices: list[int]) -> Pairs:
    from sklearn.datasets import load_digits

    found = load_digits()
    for i in indices:
        yield f"{i:06d}", {"png": _enlarged(found.images[i]), "cls": b"%d" % found.target[i]}


def _enlarged(scan) -> bytes:  # type: ignore[no-untyped-def]
    """Enlarge one 8x8 scan of levels 0 to 16 to a grey PNG."""
    import numpy as np
    from PIL import Image

    grey = np.rint(scan * (255 / 16)).astype(np.uint8)
    image = Image.fromarray(grey).resize((_PX, _PX), Image.Resampling.BICUBIC)
    return png(np.asarray(image))
