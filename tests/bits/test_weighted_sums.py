"""The combination of masks against a stack of float masks and autograd."""

import pytest
import torch

from avalanche_supermask.bits.weighted_sums import combine, encode


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
