"""Codes of masks are exact and close to the entropy bound, and bytes that are no code are refused."""

import math

import numpy as np
import pytest

from avalanche_supermask.bits.rice import GROUPED, HEAD, RAW, decode, encode, is_grouped


def drawn(n, density, seed=0):
    mask = np.zeros(n, dtype=bool)
    mask[np.random.default_rng(seed).permutation(n)[: round(density * n)]] = True
    return mask


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 1000])
@pytest.mark.parametrize("density", [0.0, 0.001, 0.02, 0.1, 0.5, 0.9, 1.0])
def test_a_code_gives_the_mask_back_and_says_where_it_ends(n, density):
    mask = drawn(n, density)
    found, used = decode(encode(mask) + b"next", n)
    assert np.array_equal(found, mask)
    assert used == len(encode(mask))


@pytest.mark.parametrize("seed", range(30))
def test_clustered_masks_too(seed):
    random = np.random.default_rng(seed)
    mask = np.repeat(random.random(40) < 0.4, random.integers(1, 60, 40))
    assert np.array_equal(decode(encode(mask), mask.size)[0], mask)


@pytest.mark.parametrize(("density", "at_most"), [(0.02, 1.05), (0.05, 1.05), (0.1, 1.12), (0.5, 1.01), (0.98, 1.05)])
def test_close_to_the_entropy_bound(density, at_most):
    n = 200_000
    bound = n * -(density * math.log2(density) + (1 - density) * math.log2(1 - density)) / 8
    assert bound <= len(encode(drawn(n, density))) <= at_most * bound


def rows_of_different_density(seed=0):
    """A mask of 2 % of a layer, most of it in an eighth of the rows, as the largest gradients choose it."""
    random = np.random.default_rng(seed)
    shares = np.where(np.arange(200) % 8 == 0, 0.12, 0.005)
    return random.random((200, 500)) < shares[:, None]


def test_masks_with_dense_rows_are_shorter_than_the_bound_of_even_masks():
    mask = rows_of_different_density()
    code, share = encode(mask), mask.mean()
    even = -mask.size * (share * math.log2(share) + (1 - share) * math.log2(1 - share)) / 8
    rows = sum(len(encode(row)) - HEAD.size for row in mask)
    assert is_grouped(code)
    assert not is_grouped(encode(drawn(mask.size, float(share))))
    assert rows < len(code) < 0.87 * even
    assert np.array_equal(decode(code, mask.size)[0], mask.reshape(-1))


@pytest.mark.parametrize("count", [*range(1, 20), 31, 32, 33, 63, 65])
def test_groups_of_any_length_give_the_mask_back(count):
    """Gaps alternate between short and long in runs of eight, so that groups are worth their four bits."""
    gaps = np.where(np.arange(count) // 8 % 2 == 0, 0, 20_000) + np.arange(count) % 3
    mask = np.zeros(int((gaps + 1).sum()) + 5, dtype=bool)
    mask[np.cumsum(gaps + 1) - 1] = True
    code = encode(mask)
    assert is_grouped(code) == (count > 8)
    found, used = decode(code + b"next", mask.size)
    assert np.array_equal(found, mask)
    assert used == len(code)


def test_never_much_longer_than_the_bits():
    alternating = np.arange(8000) % 2 == 0
    assert len(encode(alternating)) <= 1000 + HEAD.size


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (b"", "expected at least the 9 bytes of its head, got 0"),
        (b"\x01\x02", "expected at least the 9 bytes of its head, got 2"),
        (HEAD.pack(3, 5, 100) + b"short", "5 gaps in 111 bytes, got 14 bytes"),
        (HEAD.pack(30, 1, 1) + b"\x00", "its head names method 30 and 1 gaps"),
        (HEAD.pack(GROUPED | 2, 1, 1) + b"\x00", "its head names method 34 and 1 gaps"),
        (HEAD.pack(GROUPED | 3, 17, 1) + b"\x11", "17 gaps in 12 bytes, got 10 bytes"),
        (HEAD.pack(GROUPED | 3, 9, 2) + b"\x12" + bytes(2), "9 gaps in 14 bytes, got 12 bytes"),
        (HEAD.pack(2, 50, 1) + bytes(20), "its head names method 2 and 50 gaps"),
        (HEAD.pack(0, 1, 4) + b"\xff\xff\xff\xff", "expected 1 gaps, got 0"),
        (HEAD.pack(0, 1, 3) + b"\xff\xff\xfe", "expected entries below 20, got 23"),
        (HEAD.pack(RAW, 0, 1) + b"\xff", "expected 3 bytes with one bit per entry, got 1"),
        (HEAD.pack(0, 2**32 - 1, 0), "its head names method 0 and 4294967295 gaps"),
    ],
)
def test_bytes_that_are_no_code_are_refused(code, said):
    with pytest.raises(ValueError, match=f"no code of a mask.*{said}"):
        decode(code, 20)


def test_random_and_damaged_bytes_are_refused_or_give_a_mask():
    random, decoded = np.random.default_rng(0), 0
    for trial in range(2000):
        code = bytearray(random.integers(0, 256, random.integers(0, 40)).astype(np.uint8).tobytes())
        if trial % 2:  # Random bytes are hardly ever a code; one changed bit may leave another one.
            code = bytearray(encode(drawn(64, 0.2, seed=trial)))
            code[random.integers(len(code))] ^= 1 << int(random.integers(8))
        try:
            mask, used = decode(bytes(code), 64)
        except ValueError:
            continue
        assert mask.shape == (64,)
        assert used <= len(code)
        decoded += 1
    assert 100 < decoded < 1000, "some are refused, and some are masks"
