import builtins
import importlib.util

import numpy as np
import pytest
import torch

from avalanche_supermask.bits import packed_masks as masks_module
from avalanche_supermask.bits.dot_products import _products, compiled, products
from avalanche_supermask.bits.packed_masks import PackedMasks

needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is an extra")
SHAPES = {"a.weight": (3, 5), "b.weight": (8,), "c": (7, 11, 13)}


@pytest.fixture
def masks():
    found = PackedMasks(SHAPES)
    draw = torch.Generator().manual_seed(0)
    for slot in range(70):  # more than `AT_ONCE`, so that there are two blocks
        found.commit(slot, {name: torch.rand(shape, generator=draw) < 0.3 for name, shape in SHAPES.items()})
    return found


def by_hand(masks, gradients, slots):
    return {
        name: torch.stack([(g * masks.read(slot)[name]).flatten(1).sum(dim=1) for slot in slots])
        for name, g in gradients.items()
    }


def gradients(queries, names=SHAPES):
    draw = torch.Generator().manual_seed(1)
    return {name: torch.randn(queries, *SHAPES[name], generator=draw) for name in names}


@pytest.mark.parametrize("kernel", [_products, pytest.param(None, marks=needs_numba)])
def test_sums_of_what_a_row_selects(kernel):
    kernel = kernel or compiled()
    draw = np.random.default_rng(0)
    rows = list(draw.integers(0, 256, (3, 40), dtype=np.uint8))
    vector = draw.normal(size=320).astype(np.float32)
    chosen = np.unpackbits(np.stack(rows), axis=1, bitorder="little") * vector.astype(np.float64)
    assert np.allclose(products(rows, vector, kernel=kernel), chosen.sum(axis=1), rtol=1e-5, atol=1e-5)


@needs_numba
def test_equal_rows_have_equal_sums_wherever_they_stand():
    row = np.random.default_rng(0).integers(0, 256, 1001, dtype=np.uint8)
    vector = np.random.default_rng(1).normal(size=8008).astype(np.float32)
    found = products([row.copy() for _ in range(130)], vector, kernel=compiled())
    assert (found == found[0]).all()


@needs_numba
def test_what_is_not_finite_is_not_hidden():
    vector = np.zeros(16, dtype=np.float32)
    vector[9] = np.inf
    rows = [np.array([255, 0], np.uint8), np.array([255, 2], np.uint8)]
    assert products(rows, vector, kernel=compiled()).tolist() == [0, np.inf]


@pytest.mark.parametrize("queries", [1, 3, masks_module.FEW + 1])
@pytest.mark.parametrize("names", [tuple(SHAPES), ("c",)])
@pytest.mark.parametrize("with_numba", [False, pytest.param(True, marks=needs_numba)])
def test_projections_are_those_of_the_unpacked_masks(masks, queries, names, with_numba, monkeypatch):
    if not with_numba:
        monkeypatch.setattr(masks_module, "compiled", lambda: None)
    slots = [3, 69, 0, 3]
    found = masks.project(gradients(queries, names), slots)
    assert list(found) == list(names)
    for name, expected in by_hand(masks, gradients(queries, names), slots).items():
        assert torch.allclose(found[name], expected, rtol=1e-4, atol=1e-4)


def test_without_numba_there_is_no_loop(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "numba":
            raise ModuleNotFoundError("No module named 'numba'")
        return real(name, *args, **kwargs)

    compiled.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    assert compiled() is None
    compiled.cache_clear()
