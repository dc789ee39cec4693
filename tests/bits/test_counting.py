import numpy as np
import pytest

from avalanche_supermask.bits.counting import count


@pytest.mark.parametrize("size", [1, 7, 8, 9, 40])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 7, 8, 100])
def test_counts_are_those_of_the_unpacked_bits(n, size):
    rows = np.random.default_rng(n + size).integers(0, 256, (n, size), dtype=np.uint8)
    found = count(iter(rows), size=size)
    assert found.dtype == np.float32
    assert np.array_equal(found, np.unpackbits(rows, axis=1, bitorder="little").sum(axis=0))


def test_rows_stay_as_they_are():
    rows = np.full((9, 5), 255, dtype=np.uint8)
    assert (count(rows, size=5) == 9).all()
    assert (rows == 255).all()
