"""Order by dot product: exact, lowest number first among equals, and never all pairs at once."""

import tracemalloc

import numpy as np
import pytest

from pipeline.probes import nearness
from pipeline.probes.nearness import normalised, products, rank_of, top
from tests.probes.samples import D, rows


def ordered(product_BN: np.ndarray) -> np.ndarray:
    return np.argsort(-product_BN, axis=1, kind="stable")


@pytest.mark.parametrize("k", [1, 2, 7, 39, 40])
@pytest.mark.parametrize("levels", [1, 2, 3, 10, 10_000])
def test_top_is_the_head_of_a_stable_sort(k: int, levels: int) -> None:
    """Few levels make ties everywhere, at the edge too."""
    given_BN = np.random.default_rng(k).integers(0, levels, size=(50, 40)).astype(np.float32)
    np.testing.assert_array_equal(top(given_BN.copy(), k), ordered(given_BN)[:, :k])


@pytest.mark.parametrize("levels", [1, 3, 10_000])
def test_rank_is_the_place_in_a_stable_sort(levels: int) -> None:
    generator = np.random.default_rng(levels)
    given_BN = generator.integers(0, levels, size=(50, 40)).astype(np.float32)
    place_B = generator.integers(0, 40, size=50)
    expected_B = (ordered(given_BN) == place_B[:, None]).argmax(axis=1)
    np.testing.assert_array_equal(rank_of(given_BN, place_B), expected_B)


@pytest.mark.parametrize("queries", [1, 2, 7, 40])
@pytest.mark.parametrize("count", [3, 13, 41, 700, 2111])
def test_equal_rows_have_equal_products_to_the_last_bit(count: int, queries: int) -> None:
    generator = np.random.default_rng(0)
    query_QD, bank_ND = (
        generator.normal(size=(n, 512)).astype(np.float32) for n in (queries, count)
    )
    bank_ND[-1] = bank_ND[1]
    twice_ND = np.concatenate([bank_ND, bank_ND[::-1]])
    (_, product_BN), *more = products(query_QD, twice_ND)
    assert not more
    np.testing.assert_array_equal(product_BN[:, :count], product_BN[:, count:][:, ::-1])
    np.testing.assert_array_equal(product_BN[:, 1], product_BN[:, count - 1])
    np.testing.assert_allclose(product_BN, query_QD @ twice_ND.T, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_are_all_products_in_the_given_type(
    monkeypatch: pytest.MonkeyPatch, dtype: type
) -> None:
    monkeypatch.setattr(nearness, "BLOCK_BYTES", 1000)
    query_QD, bank_ND = rows(50, seed=1).astype(dtype), rows(30, seed=2).astype(dtype)
    found = list(products(query_QD, bank_ND))
    assert len(found) > 3
    assert [i for block, _ in found for i in range(50)[block]] == list(range(50))
    assert all(product_BN.dtype == dtype for _, product_BN in found)
    whole = np.concatenate([product_BN for _, product_BN in found])
    np.testing.assert_allclose(whole, query_QD @ bank_ND.T, atol=1e-6)


def test_memory_does_not_grow_with_the_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearness, "BLOCK_BYTES", 2 << 20)
    query_QD, bank_ND = rows(4000, seed=1), rows(8000, seed=2)  # 122 MiB of products
    tracemalloc.start()
    for _, product_BN in products(query_QD, bank_ND):
        top(product_BN, 5)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 12 << 20


def test_normalised_rows_have_norm_1_and_zeros_stay() -> None:
    given_ND = 100 * rows(9, seed=0) * np.arange(9)[:, None]
    found_ND = normalised(given_ND.astype(np.float32))
    assert found_ND.dtype == np.float32
    np.testing.assert_array_equal(found_ND[0], np.zeros(D))
    np.testing.assert_allclose(np.linalg.norm(found_ND[1:], axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found_ND[1:], rows(9, seed=0)[1:], atol=1e-6)
