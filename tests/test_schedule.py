"""The schedule is a pure function whose numbers never move."""

import dataclasses
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest

from pipeline.options import to_mapping
from pipeline.schedule import (
    GEOMETRIES,
    INTERPOLATIONS,
    EvalSchedule,
    Schedule,
    ViewParams,
    philox_words,
    schedule_from,
    view_uniforms,
)

KEYS = [f"{number:06d}" for number in range(2000)]
NOT_UTF8 = b"caf\xe9/\xff\xfe".decode("utf-8", "surrogateescape")
ALWAYS = Schedule(flip=1, jitter=1, grayscale=1, blur=1)

# (key, view, width, height) -> the default schedule's parameters. Changing one of these breaks
# every cache ever made.
GOLDEN = {
    ("000000", 0, 64, 48): ViewParams(
        x=0.25072762,
        y=0.021592977,
        width=0.6710561,
        height=0.9761687,
        flip=1,
        brightness=0.94979185,
        contrast=1.2908165,
        saturation=1.339738,
        hue=0.017332949,
    ),
    ("000000", 1, 64, 48): ViewParams(
        x=0.24719936,
        y=0.099442005,
        width=0.7249685,
        height=0.8978827,
        flip=1,
        brightness=0.8738474,
        contrast=0.64363426,
        saturation=1.1056944,
        hue=0.010226747,
    ),
    ("n02105641/ä", 7, 500, 375): ViewParams(
        x=0.12666279,
        y=0.004839385,
        width=0.67734945,
        height=0.79203016,
        brightness=0.94339067,
        contrast=0.7934845,
        saturation=1.3346381,
        hue=0.09795864,
    ),
    ("000007", 2, 1000, 10): ViewParams(
        x=0.49333334,
        y=0,
        width=0.013333334,
        height=1,
        brightness=0.6563369,
        contrast=0.71372056,
        saturation=0.72933894,
        hue=-0.090107314,
        blur_sigma=0.0041773426,
    ),
}


def philox_key(seed: int, key: str) -> np.ndarray:
    """Derive a view's Philox key anew, from the contract."""
    text = seed.to_bytes(8, "little") + key.encode("utf-8", "surrogateescape")
    digest = blake2b(text, digest_size=16, person=b"beamclip-view-1 ").digest()
    return np.frombuffer(digest, "<u8")


def fresh_words(key: np.ndarray, block: int, count: int) -> list[int]:
    """Return the words of a newly made Philox."""
    counter = np.array([0, block, 0, 0], np.uint64)
    return [int(word) for word in np.random.Philox(key=key, counter=counter).random_raw(count)]


def philox_by_hand(key: np.ndarray, block: int, count: int) -> Iterator[int]:
    """Yield the words of Philox-4x64-10 in plain integers, as its paper defines it."""
    mask = 2**64 - 1
    for place in range(1, count // 4 + 1):  # numpy counts up before it draws
        a, b, c, d = place, block, 0, 0
        k0, k1 = (int(word) for word in key)
        for _ in range(10):
            one, two = a * 0xD2E7470EE14C6C93, c * 0xCA5A826395121157
            a, b, c, d = two >> 64 ^ b ^ k0, two & mask, one >> 64 ^ d ^ k1, one & mask
            k0, k1 = k0 + 0x9E3779B97F4A7C15 & mask, k1 + 0xBB67AE8584CAA73B & mask
        yield from (a, b, c, d)


def draw(rule: Schedule, keys: list[str] = KEYS, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """Return one row of parameters per key, view 0."""
    return np.array([rule.params(key, 0, *size) for key in keys])


def column(params: np.ndarray, name: str) -> np.ndarray:
    return params[:, ViewParams._fields.index(name)]


def test_words_of_the_contract() -> None:
    key = philox_key(0, "000000")
    assert [f"{int(word):016x}" for word in key] == ["5c30ad241e30500c", "51185d4d7a42c1a3"]
    first, second = philox_words(key, 0, 2), philox_words(key, 1, 2)
    assert [f"{word:016x}" for word in first] == ["919ed760da43494b", "6031070067e898f3"]
    assert [f"{word:016x}" for word in second] == ["f440eb7290ad5528", "ecb08de6b46ec9c6"]


def test_uniforms_are_the_words_high_bits() -> None:
    for view, words in ((0, 0x919ED760DA43494B), (1, 0xF440EB7290AD5528)):
        assert view_uniforms(0, "000000", view)[0] == (words >> 11) / 2**53


def test_a_views_words_do_not_need_numpy() -> None:
    for seed, key, view in ((0, "000000", 0), (0, "a/b ä", 7), (2**63 - 1, NOT_UTF8, 10_000)):
        by_hand = [(word >> 11) / 2**53 for word in philox_by_hand(philox_key(seed, key), view, 32)]
        assert view_uniforms(seed, key, view) == by_hand


def test_reused_generator_equals_a_fresh_one() -> None:
    for number, key in enumerate(KEYS[:100]):
        name, view = philox_key(number, key), number * 37
        for count in (32, 1, 3, 33):  # leftovers of one draw never reach the next
            assert philox_words(name, view, count).tolist() == fresh_words(name, view, count)


def test_views_of_a_sample_share_no_word() -> None:
    words = [philox_words(philox_key(0, "a"), view, 32) for view in range(200)]
    assert len(np.unique(words)) == 200 * 32


@pytest.mark.parametrize("asked", GOLDEN, ids=str)
def test_golden_parameters(asked: tuple[str, int, int, int]) -> None:
    found = np.array(Schedule().params(*asked), np.float32)
    assert found.tobytes() == np.array(GOLDEN[asked], np.float32).tobytes(), found.tolist()


def test_order_of_calls_does_not_matter() -> None:
    rule = Schedule()
    asked = [(key, view, 60, 40) for key in KEYS[:50] for view in range(4)]
    forwards = [rule.params(*item) for item in asked]
    backwards = [rule.params(*item) for item in reversed(asked)]
    assert forwards == backwards[::-1]


def test_threads_do_not_disturb_each_other() -> None:
    rule = Schedule()
    expected = [rule.params(key, 3, 60, 40) for key in KEYS]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda key: rule.params(key, 3, 60, 40), KEYS)) == expected


def test_global_random_state_plays_no_part() -> None:
    np.random.seed(1)
    expected, params = np.random.random(), Schedule().params("a", 0, 60, 40)
    np.random.seed(1)
    assert Schedule().params("a", 0, 60, 40) == params
    assert np.random.random() == expected


@pytest.mark.parametrize("rule", [Schedule(), ALWAYS, Schedule(hue=0.5, brightness=2)])
def test_parameters_are_float32_already(rule: Schedule) -> None:
    params = draw(rule)
    assert (params == params.astype(np.float32)).all()
    assert np.isfinite(params).all()


def test_seed_key_and_view_each_change_the_view() -> None:
    found = {
        Schedule(seed=seed).params(key, view, 60, 40)
        for seed in (0, 1, 2**63 - 1)
        for key in ("a", "b", "a ", "A", NOT_UTF8)
        for view in (0, 1, 4, 2**32)
    }
    assert len(found) == 3 * 5 * 4


def test_name_and_size_leave_the_draws_alone() -> None:
    one = Schedule(name="one").params("a", 0, 64, 48)
    assert Schedule(name="two").params("a", 0, 64, 48) == one
    assert Schedule(name="one").params("a", 0, 640, 480) == one  # crops are fractions


@pytest.mark.parametrize(
    ("off", "fields"),
    [
        ({"flip": 0}, {"flip"}),
        (
            {"jitter": 0},
            {"brightness", "contrast", "saturation", "hue"},
        ),
        ({"brightness": 0}, {"brightness"}),
        ({"contrast": 0}, {"contrast"}),
        ({"saturation": 0}, {"saturation"}),
        ({"hue": 0}, {"hue"}),
        ({"grayscale": 0}, {"grayscale"}),
        ({"blur": 0}, {"blur_sigma"}),
        ({"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}, {"x", "y", "width", "height"}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",  # a set has no order
)
def test_switching_one_operation_off_leaves_the_rest(off: dict[str, Any], fields: set[str]) -> None:
    with_it = draw(ALWAYS, KEYS[:200])
    without = draw(dataclasses.replace(ALWAYS, **off), KEYS[:200])
    for name in ViewParams._fields:
        same = (column(with_it, name) == column(without, name)).all()
        assert same == (name not in fields), name
        if name in fields - {"x", "y", "width", "height"}:
            identity = ViewParams._field_defaults[name]
            assert (column(without, name) == identity).all()


@pytest.mark.parametrize(
    "size", [(64, 48), (1, 1), (4, 200), (37, 23), (640, 427), (1021, 997), (8, 8)], ids=str
)
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.7, 1.0), (0.05, 0.1)], ids=str)
def test_crops_lie_inside_with_area_and_ratio_in_bounds(
    size: tuple[int, int], scale: tuple[float, float]
) -> None:
    rule = Schedule(crop_scale=scale)
    params = draw(rule, KEYS[:500], size)
    x, y, w, h = (column(params, name) for name in ("x", "y", "width", "height"))
    slack = 1e-6  # the rounding of four numbers to float32
    assert (x >= 0).all()
    assert (y >= 0).all()
    assert (x + w <= 1 + slack).all()
    assert (y + h <= 1 + slack).all()
    ratio = w * size[0] / (h * size[1])
    fitted = (w == 1) | (h == 1)  # no attempt fitted: the whole of one side, centred
    assert (ratio >= rule.crop_ratio[0] * (1 - slack)).all()
    assert (ratio <= rule.crop_ratio[1] * (1 + slack)).all()
    assert (w * h >= scale[0] * (1 - slack))[~fitted].all()
    assert (w * h <= scale[1] * (1 + slack)).all()


@pytest.mark.parametrize(
    ("size", "wide", "tall"),
    [((1000, 10), 4 / 300, 1), ((10, 1000), 1, 4 / 300), ((60_000, 1), 4 / 180_000, 1)],
)
def test_a_source_too_long_for_any_crop_gives_the_largest_in_the_centre(
    size: tuple[int, int], wide: float, tall: float
) -> None:
    box = Schedule().params("a", 0, *size)[:4]
    assert box == pytest.approx(((1 - wide) / 2, (1 - tall) / 2, wide, tall), rel=1e-6)


def test_whole_image_of_the_wrong_ratio_is_cut_to_the_nearest() -> None:
    rule = Schedule(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    params = rule.params("a", 0, 60, 40)
    assert params[:4] == tuple(float(np.float32(v)) for v in (1 / 6, 0, 2 / 3, 1))


def test_operations_happen_as_often_as_asked() -> None:
    params = draw(Schedule())
    assert abs((column(params, "flip") == 1).mean() - 0.5) < 0.04
    assert abs((column(params, "brightness") != 1).mean() - 0.8) < 0.04
    assert abs((column(params, "hue") != 0).mean() - 0.8) < 0.04
    assert abs((column(params, "grayscale") == 1).mean() - 0.2) < 0.04
    assert abs((column(params, "blur_sigma") > 0).mean() - 0.5) < 0.04


def test_amounts_are_spread_evenly_within_their_reach() -> None:
    params = draw(ALWAYS)
    for name, low, high in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.6, 1.4),
        ("saturation", 0.6, 1.4),
        ("hue", -0.1, 0.1),
        ("blur_sigma", *ALWAYS.blur_sigma),
    ):
        share = (column(params, name) - low) / (high - low)
        assert share.min() >= -1e-6, name
        assert share.max() <= 1 + 1e-6, name
        counts, _ = np.histogram(share, 10, (0, 1))
        assert counts.min() > 140, name  # 200 expected
        assert counts.max() < 260, name


def test_draws_are_independent_of_each_other() -> None:
    uniforms = np.array([view_uniforms(0, key, 0) for key in KEYS])
    later = np.array([view_uniforms(0, key, 1) for key in KEYS])
    together = np.corrcoef(np.hstack([uniforms, later]).T)
    assert np.abs(together - np.eye(64)).max() < 0.11  # 5 sigma
    assert np.abs(uniforms.mean(0) - 0.5).max() < 0.033


def test_a_wide_reach_never_makes_a_factor_negative() -> None:
    params = draw(Schedule(brightness=3, contrast=1, saturation=0.2, jitter=1), KEYS[:300])
    assert 0 <= column(params, "brightness").min() < 0.2
    assert 3.8 < column(params, "brightness").max() <= 4
    assert column(params, "contrast").min() >= 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "eval"},
        {"name": ""},
        {"name": "-"},
        {"name": "a b"},
        {"name": "a.v0"},
        {"name": "../x"},
        {"name": "vües"},  # a unit's folder could not be read back
        {"name": "x²"},
        {"flip": -0.1},
        {"flip": 1.1},
        {"jitter": math.nan},
        {"grayscale": 2},
        {"blur": -1},
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.8, 0.2)},
        {"crop_scale": (0.5, 1.5)},
        {"crop_scale": (math.nan, 1.0)},
        {"crop_ratio": (-1.0, 1.0)},
        {"crop_ratio": (0.5, math.inf)},
        {"blur_sigma": (0.0, 0.1)},
        {"blur_sigma": (0.1, 2.0)},  # pixels, where a fraction of the side belongs
        {"hue": 0.6},
        {"hue": -0.1},
        {"brightness": -0.4},
        {"contrast": -0.1},
        {"saturation": math.nan},
        {"brightness": 1000},  # beyond 32-bit pixel arithmetic
        {"seed": -1},
        {"seed": 2**63},
    ],
    ids=str,
)
def test_a_senseless_schedule_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Schedule(**wrong)


def test_keys_that_are_not_utf8_have_views() -> None:
    params = Schedule().params(NOT_UTF8, 0, 64, 48)
    assert params != Schedule().params(NOT_UTF8[:-1], 0, 64, 48)
    assert Schedule().params("", 0, 64, 48) != params
    assert Schedule().params("x" * 4096 + "\n", 0, 64, 48) != params


@pytest.mark.parametrize("rule", [ALWAYS, EvalSchedule(resize_mode="longest")])
def test_a_schedule_is_rebuilt_from_its_manifest_entry(rule: Schedule | EvalSchedule) -> None:
    kind = "eval" if isinstance(rule, EvalSchedule) else "crops"
    assert schedule_from({"kind": kind, **to_mapping(rule)}) == rule


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_eval_view_is_the_same_for_every_key(mode: Any, interpolation: Any) -> None:
    rule = EvalSchedule(resize_mode=mode, interpolation=interpolation)
    params = rule.params("a", 0, 60, 40)
    assert params == rule.params("b", 0, 60, 40)
    assert GEOMETRIES[int(params.geometry)] == mode
    assert INTERPOLATIONS[int(params.interpolation)] == interpolation
    assert params[6:] == ViewParams()[6:]
    seen = (1 / 6, 0, 2 / 3, 1) if mode == "shortest" else (0, 0, 1, 1)
    assert params[:4] == tuple(float(np.float32(v)) for v in seen)


def test_eval_schedule_has_one_view() -> None:
    with pytest.raises(ValueError, match="one view, number 0, not 1"):
        EvalSchedule().params("a", 1, 60, 40)
