import math

import numpy as np
import pytest
import torch

from avalanche_supermask.functional import (
    erdos_renyi_counts,
    initial_scores,
    jaccard,
    kth_largest,
    overlap,
    signed_constant,
    threshold_weight,
    top_k_free,
    top_k_mask,
    top_k_weight,
    uniform_counts,
)
from avalanche_supermask.functional.top_k import _top_k_without_sync as top_k_on_gpu


def naive_top_k(scores, keep):
    """Compute the mask by sorting by magnitude and then by position."""
    order = sorted(range(scores.numel()), key=lambda i: (-abs(float(scores.reshape(-1)[i])), i))
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[order[:keep]] = True
    return mask.reshape(scores.shape)


@pytest.mark.parametrize("keep", [1, 2, 7, 59, 60])
@pytest.mark.parametrize("kind", ["random", "equal", "few values", "infinite"])
def test_top_k_equals_a_naive_sort(keep, kind):
    scores = torch.randn(5, 12)
    if kind == "equal":
        scores = torch.full((5, 12), -0.25)
    elif kind == "few values":
        scores = scores.round()
    elif kind == "infinite":
        scores[0, :3] = torch.tensor([math.inf, -math.inf, math.inf])
    expected = naive_top_k(scores, keep)
    assert torch.equal(top_k_mask(scores, keep), expected)
    assert top_k_mask(scores, keep).sum() == keep
    if keep < 60:
        assert torch.equal(top_k_on_gpu(scores.abs(), keep), expected)


@pytest.mark.parametrize("keep", [0, 7])
def test_top_k_says_what_it_cannot_keep(keep):
    with pytest.raises(ValueError, match=f"6 weights cannot keep {keep}"):
        top_k_mask(torch.zeros(6), keep)


@pytest.mark.parametrize("keep", [0, 1, 3, 4, 9])
def test_top_k_of_free_entries_equals_a_naive_sort(keep):
    scores, taken = torch.randn(2, 4), torch.tensor([[True, False, True, False], [False, False, True, True]])
    free = [i for i in range(8) if not taken.flatten()[i]]
    chosen = sorted(free, key=lambda i: -abs(float(scores.flatten()[i])))[:keep]
    assert top_k_free(scores, taken, keep).flatten().nonzero().flatten().tolist() == sorted(chosen)


def test_top_k_of_free_entries_refuses_a_negative_number():
    with pytest.raises(ValueError, match="3 free entries cannot keep -1; expected 0 or more"):
        top_k_free(torch.randn(3), torch.zeros(3, dtype=torch.bool), -1)


def test_top_k_refuses_nan():
    with pytest.raises(ValueError, match="scores contain NaN"):
        top_k_mask(torch.tensor([1.0, math.nan, 2.0, 0.5]), 2)


@pytest.mark.parametrize("density", [1e-6, 0.02, 0.07, 0.1, 0.5, 0.9, 1.0])
def test_uniform_counts_are_whole_and_at_least_one(density):
    counts = uniform_counts({"a": (10, 100), "b": (3, 3)}, density)
    assert counts == {"a": max(1, round(1000 * density)), "b": max(1, round(9 * density))}


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5])
@pytest.mark.parametrize("counts", [uniform_counts, erdos_renyi_counts])
def test_density_is_checked(counts, density):
    with pytest.raises(ValueError, match="fraction of weights kept"):
        counts({"a": (4, 4)}, density)


@pytest.mark.parametrize("density", [0.01, 0.05, 0.3, 0.7, 1.0])
def test_erdos_renyi_keeps_the_overall_density_and_makes_small_layers_denser(density):
    shapes = {"first": (300, 784), "second": (100, 300), "last": (10, 100)}
    counts = erdos_renyi_counts(shapes, density)
    total = sum(math.prod(s) for s in shapes.values())
    assert sum(counts.values()) == pytest.approx(density * total, abs=2)
    densities = [counts[n] / math.prod(shapes[n]) for n in shapes]
    assert densities == sorted(densities)
    assert max(densities) <= max(0.5, density) + 1e-3


def test_erdos_renyi_matches_the_published_budget():
    # GEM-ResNet18's budget s = 1 keeps s * (C_out + C_in) weights per layer; here for two layers at a matching density.
    shapes = {"a": (20, 3, 3, 3), "b": (160, 160, 3, 3)}
    kept = (20 + 3) + (160 + 160)
    density = kept / (540 + 230_400)
    assert erdos_renyi_counts(shapes, density) == {"a": 23, "b": 320}


def test_gradient_is_straight_through_for_kept_and_dropped():
    scores = torch.randn(4, 5, requires_grad=True)
    weight = torch.randn(4, 5, requires_grad=True)
    grad = torch.randn(4, 5)
    effective = top_k_weight(scores, weight, 6)
    mask = naive_top_k(scores.detach(), 6)
    assert torch.equal(effective, weight * mask)
    effective.backward(grad)
    assert torch.equal(scores.grad, scores.detach().sign() * grad * weight.detach())
    assert torch.equal(weight.grad, grad * mask)
    assert (scores.grad[~mask] != 0).all()


def test_threshold_gradient():
    scores = torch.randn(4, 5, requires_grad=True)
    weight = torch.randn(4, 5)
    grad = torch.randn(4, 5)
    effective = threshold_weight(scores, weight)
    assert torch.equal(effective, weight * (scores >= 0))
    effective.backward(grad)
    assert torch.equal(scores.grad, grad * weight)


def test_signed_constant():
    weight = signed_constant((20, 3, 5, 5), generator=torch.Generator().manual_seed(3))
    assert torch.equal(weight.abs(), torch.full_like(weight, math.sqrt(2 / 75)))
    assert weight.min() < 0 < weight.max()
    assert torch.equal(weight, signed_constant((20, 3, 5, 5), generator=torch.Generator().manual_seed(3)))


def test_initial_scores_are_kaiming_uniform():
    scores = initial_scores((200, 100), generator=torch.Generator().manual_seed(0))
    assert scores.abs().max() <= 0.1
    assert float(scores.std()) == pytest.approx(0.1 / math.sqrt(3), rel=0.02)


def test_overlap_of_random_masks_is_their_density():
    generator = torch.Generator().manual_seed(0)
    a, b = ({"w": torch.rand(400, 400, generator=generator) < 0.1} for _ in range(2))
    assert overlap(a, b) == pytest.approx(0.1, abs=0.01)
    assert overlap(a, a) == 1.0
    assert jaccard(a, a) == 1.0
    assert overlap({"w": torch.zeros(2, dtype=torch.bool)}, {"w": torch.ones(2, dtype=torch.bool)}) == 0.0


@pytest.mark.parametrize("hint", [None, 0.0, 1e-9, 0.4, 0.5, 0.51, 0.6, 1e9, math.nan])
@pytest.mark.parametrize("k", [1, 100, 500, 999, 1000])
def test_a_hint_changes_the_time_never_the_result(k, hint):
    values = np.random.RandomState(0).rand(1000).astype(np.float32)
    values[::7] = 0.5
    assert kth_largest(values, k, hint=hint) == np.sort(values)[::-1][k - 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types_keep_their_exact_count(dtype):
    scores = torch.randn(40, 50).to(dtype)
    assert top_k_mask(scores, 137).sum() == 137
    assert torch.equal(top_k_mask(scores, 137), naive_top_k(scores, 137))
