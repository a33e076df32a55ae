"""Which rows a probe takes of many: a function of a seed and a name, nothing else."""

from hashlib import blake2b

import numpy as np

from pipeline.schedule import philox_words


def shuffled(count: int, seed: int, name: str) -> np.ndarray:
    """Return 0 to count - 1, int64, in an order of its own for every seed and name.

    blake2b of both keys Philox; row i goes where its i-th word stands among all.
    """
    text = seed.to_bytes(8, "little") + name.encode()
    digest = blake2b(text, digest_size=16, person=b"beamclip-draw-1 ").digest()
    words = philox_words(np.frombuffer(digest, "<u8"), 0, count)
    return np.argsort(words, kind="stable")
