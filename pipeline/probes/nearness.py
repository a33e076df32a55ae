"""Orders vectors by their dot product with others, in bounded memory; ties go to the lower number.

Shape letters: Q queries, B a block of them, N what is searched, D dimension, k nearest.
"""

from collections.abc import Iterator

import numpy as np
import xxhash

# A block of products takes at most so many bytes (one query's, if those alone are more); what
# probes make of it takes two or three times that.
BLOCK_BYTES = 256 << 20
_BLOCK_QUERIES = 1024


def normalised(x_ND: np.ndarray) -> np.ndarray:
    """Return the rows at norm 1, of the same type; zeros stay."""
    norm_N = np.sqrt(np.einsum("nd,nd->n", x_ND, x_ND))  # makes no array of squares
    return np.asarray(x_ND / np.maximum(norm_N, 1e-12)[:, None])


def products(query_QD: np.ndarray, bank_ND: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield (which queries, their dot products with all of the bank [B,N]), in the given type.

    Rows of the bank that are equal, byte for byte, have equal products, to the last bit.
    """
    again_R, first_R = _repeats(bank_ND)
    step = BLOCK_BYTES // max(1, len(bank_ND) * bank_ND.itemsize)
    step = min(_BLOCK_QUERIES, max(1, step))
    for begin in range(0, len(query_QD), step):
        block = slice(begin, min(begin + step, len(query_QD)))
        product_BN = query_QD[block] @ bank_ND.T
        if len(again_R):  # a matrix product does not see to it: its edges are summed otherwise
            product_BN[:, again_R] = product_BN[:, first_R]
        yield block, product_BN


def rank_of(product_BN: np.ndarray, place_B: np.ndarray) -> np.ndarray:
    """Return how many of a query's N come before one of them, int64 [B]: 0 for the nearest."""
    own_B1 = np.take_along_axis(product_BN, place_B[:, None], axis=1)
    nearer_B = (product_BN > own_B1).sum(axis=1)
    earlier_BN = np.arange(product_BN.shape[1]) < place_B[:, None]
    return np.asarray(nearer_B + ((product_BN == own_B1) & earlier_BN).sum(axis=1))


def top(product_BN: np.ndarray, k: int) -> np.ndarray:
    """Return the places of the k largest of each row, the largest first, int64 [B,k]; k <= N."""
    import torch

    # One more than is asked for tells whether the last has an equal outside.
    more = min(k + 1, product_BN.shape[1])
    value_Bm, place_Bm = (x.numpy() for x in torch.topk(torch.from_numpy(product_BN), more))
    place_Bk = place_Bm[:, :k]
    if more > k:
        for row in np.flatnonzero(value_Bm[:, k - 1] == value_Bm[:, k]):
            place_Bk[row] = _lowest(product_BN[row], value_Bm[row, k], k)
    place_Bk = np.sort(place_Bk, axis=1)
    order_Bk = np.argsort(-np.take_along_axis(product_BN, place_Bk, 1), axis=1, kind="stable")
    return np.take_along_axis(place_Bk, order_Bk, axis=1)


def _lowest(product_N: np.ndarray, edge: float, k: int) -> np.ndarray:
    """Return the places of all above `edge`, and of the first that equal it, k in all."""
    above = np.flatnonzero(product_N > edge)
    return np.concatenate([above, np.flatnonzero(product_N == edge)[: k - len(above)]])


def _repeats(x_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of rows that were there before, and of their first ones."""
    firsts: dict[bytes, int] = {}
    pairs = []
    for place, row_D in enumerate(np.ascontiguousarray(x_ND)):
        first = firsts.setdefault(xxhash.xxh3_128_digest(row_D.data), place)
        if first != place:
            pairs.append((place, first))
    again_R, first_R = np.array(pairs, np.int64).reshape(-1, 2).T
    return again_R, first_R
