"""The combination of masks agrees with a stack of float masks and autograd."""

import pytest
import torch

from avalanche_supermask.bits import weighted_sums
from avalanche_supermask.bits.one_table import OneTable
from avalanche_supermask.bits.weighted_sums import Mixer, encode
from tests.memory import is_freed_without_collection


def combine(a, codes, weight):
    return weighted_sums.combine({"w": a}, Mixer({"w": codes}), {"w": weight})["w"]


def drawn(n, shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    masks = [torch.rand(shape, generator=generator) < 0.3 for _ in range(n)]
    weight = torch.randn(shape, generator=generator, dtype=dtype)
    a = torch.randn(n, generator=generator, dtype=dtype).requires_grad_()
    return masks, weight, a


@pytest.mark.parametrize("shape", [(1,), (3,), (7, 5), (4, 3, 3, 3), (300, 260)])
@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 40])
def test_value_and_gradient_equal_a_stack_of_float_masks(n, shape):
    masks, weight, a = drawn(n, shape)
    upstream = torch.randn(shape, dtype=torch.float64)
    found = combine(a, encode([{"w": mask} for mask in masks])["w"], weight)
    (gradient,) = torch.autograd.grad(found, a, upstream)
    stack = torch.stack(masks).double()
    expected = weight * torch.einsum("n,n...->...", a, stack)
    (expected_gradient,) = torch.autograd.grad(expected, a, upstream)
    assert torch.allclose(found, expected)
    assert torch.allclose(gradient, expected_gradient)


def test_gradient_passes_finite_differences():
    masks, weight, a = drawn(5, (4, 6))
    codes = encode([{"w": mask} for mask in masks])["w"]
    assert torch.autograd.gradcheck(lambda a: combine(a, codes, weight).tanh(), (a,))


@pytest.mark.parametrize("n", [3, 20])
def test_one_hot_gives_the_masked_weight_bit_for_bit(n):
    masks, weight, _ = drawn(n, (50, 40), dtype=torch.float32)
    codes = encode([{"w": mask} for mask in masks])["w"]
    for i, mask in enumerate(masks):
        assert torch.equal(combine(torch.eye(n)[i], codes, weight), weight * mask)


def test_it_is_linear_in_the_coefficients():
    masks, weight, a = drawn(6, (9, 9))
    b = torch.randn(6, dtype=torch.float64)
    codes = encode([{"w": mask} for mask in masks])["w"]
    with torch.no_grad():
        both = combine(2 * a - 3 * b, codes, weight)
        assert torch.allclose(both, 2 * combine(a, codes, weight) - 3 * combine(b, codes, weight), atol=1e-6)


def test_codes_hold_one_number_an_entry_for_sixteen_masks():
    masks, _, _ = drawn(16, (300, 300))
    codes = encode([{"w": mask} for mask in masks])["w"]
    assert codes.shape == (1, 90_000)
    assert codes.dtype == torch.int32


@pytest.mark.parametrize("n", [1, 15, 16, 20])
def test_compiled_loops_give_the_bits_of_single_operators(n, monkeypatch):
    pytest.importorskip("numba")
    shapes = {"large": (300, 260), "small": (3, 4), "image": (8, 4, 3, 3)}
    drawings = {name: drawn(n, shape, seed, torch.float32) for seed, (name, shape) in enumerate(shapes.items())}
    codes = encode([{name: masks[i] for name, (masks, _, _) in drawings.items()} for i in range(n)])
    weights = {name: weight for name, (_, weight, _) in drawings.items()}
    a = {name: a for name, (_, _, a) in drawings.items()}
    a["image"] = a["small"]  # Two layers share their coefficients.
    learning = [a["large"], a["small"]]
    upstream = [torch.randn(shape) for shape in shapes.values()]

    def found():
        out = weighted_sums.combine(a, Mixer(codes), weights)
        return [*out.values(), *torch.autograd.grad([*out.values()], learning, upstream)]

    monkeypatch.setattr(weighted_sums, "WORTH_COMPILING", 0)
    compiled = found()
    monkeypatch.setattr(weighted_sums, "compiled", lambda: None)
    assert all(torch.equal(x, y) for x, y in zip(compiled, found(), strict=True))


def test_a_layer_that_gets_no_gradient_gives_none():
    masks, weight, a = drawn(4, (5, 5))
    other = a.detach().clone().requires_grad_()
    codes = encode([{"used": mask, "unused": mask} for mask in masks])
    out = weighted_sums.combine({"used": a, "unused": other}, Mixer(codes), {"used": weight, "unused": weight})
    out["used"].sum().backward()
    assert a.grad is not None
    assert other.grad is None


@pytest.mark.parametrize("n", [1, 2, 15, 16, 20, 40])
def test_one_table_for_all_layers_gives_the_bits_of_one_a_layer(n, monkeypatch):
    shapes = {"large": (300, 260), "small": (3, 4), "one": (1,), "image": (8, 4, 3, 3)}
    drawings = {name: drawn(n, shape, seed, torch.float32) for seed, (name, shape) in enumerate(shapes.items())}
    codes = encode([{name: masks[i] for name, (masks, _, _) in drawings.items()} for i in range(n)])
    weights = {name: weight for name, (_, weight, _) in drawings.items()}
    a = {name: a for name, (_, _, a) in drawings.items()}
    a["image"] = a["small"]  # Two layers share their coefficients.
    learning = [a["large"], a["small"], a["one"]]
    upstream = [torch.randn(shape) for shape in shapes.values()]
    mixer = Mixer(codes)

    def found():
        out = weighted_sums.combine(a, mixer, weights)
        return list(out.values()), torch.autograd.grad(list(out.values()), learning, upstream)

    expected, gradients = found()
    monkeypatch.setattr(weighted_sums, "_by_lists", lambda tensors: True)
    for _ in range(2):  # The second step overwrites the tensors of the first.
        at_once, ours = found()
        assert all(torch.equal(x, y) for x, y in zip(at_once, expected, strict=True))
        torch.testing.assert_close(ours, gradients, rtol=1e-4, atol=1e-4)


def test_the_memory_of_a_common_table_is_freed_without_a_garbage_collection():
    def used():
        table = OneTable([torch.tensor([[2, 3]], dtype=torch.int32)], [(2,)], [2], [0], n=2, dtype=torch.float32)
        table.weights([torch.ones(2)], [torch.ones(2)])
        table.gradients([torch.ones(2)], [torch.ones(2)])
        return table

    assert is_freed_without_collection(used)
