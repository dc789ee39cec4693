"""Block masks keep exactly k whole blocks, as a naive loop does; a strategy with such masks forgets nothing."""

import pytest
import torch

from avalanche_supermask import ExSSNeT, SupSup
from avalanche_supermask.block_masks import TopBlocks, block_counts
from avalanche_supermask.selection import selection
from tests.streams import class_stream, inputs, lenet, outputs


def naive(scores, k, high, wide):
    matrix = scores.reshape(len(scores), -1)
    corners = [(i, j) for i in range(0, matrix.shape[0], high) for j in range(0, matrix.shape[1], wide)]
    strength = [matrix[i : i + high, j : j + wide].abs().mean().item() for i, j in corners]
    mask = torch.zeros(matrix.shape, dtype=torch.bool)
    for place in sorted(range(len(corners)), key=lambda p: -strength[p])[:k]:
        i, j = corners[place]
        mask[i : i + high, j : j + wide] = True
    return mask.reshape(scores.shape)


@pytest.mark.parametrize("shape", [(8, 12), (7, 13), (3, 2), (6, 4, 3, 3)])
@pytest.mark.parametrize("block", [(4, 4), (1, 1), (2, 5), (16, 16)])
def test_the_strongest_blocks_are_kept(shape, block):
    scores = torch.randn(shape)
    k = block_counts({"w": scores.numel() // 3}, {"w": shape}, block)["w"]
    assert torch.equal(TopBlocks({"w": k}, block).mask("w", scores), naive(scores, k, *block))


def test_blocks_of_one_are_single_weights():
    shapes = {"a": (30, 20), "b": (5, 7)}
    scores = {name: torch.randn(shape) for name, shape in shapes.items()}
    for kind in ("uniform", "erdos_renyi"):
        blocks = selection(shapes, density=0.2, layer_densities=kind, block=(1, 1))
        single = selection(shapes, density=0.2, layer_densities=kind)
        assert all(torch.equal(blocks.mask(n, s), single.mask(n, s)) for n, s in scores.items())


def test_the_gradient_is_edge_popups():
    scores, weight = torch.randn(6, 6, requires_grad=True), torch.randn(6, 6, requires_grad=True)
    select = TopBlocks({"w": 2}, (3, 3))
    effective = select.weight("w", scores, weight)
    mask = select.mask("w", scores)
    assert torch.equal(effective, weight * mask)
    incoming = torch.randn(6, 6)
    effective.backward(incoming)
    torch.testing.assert_close(scores.grad, scores.sign() * incoming * weight)
    torch.testing.assert_close(weight.grad, incoming * mask)


@pytest.mark.parametrize("method", [SupSup, ExSSNeT])
def test_tasks_in_blocks_stay_bit_identical(method):
    strategy = method(lenet(), density=0.3, block=(4, 4), train_epochs=2, train_mb_size=16, evaluator=None, seed=0)
    recorded, x = {}, inputs()
    for experience in class_stream(3).train_stream:
        strategy.train(experience)
        recorded[experience.current_experience] = outputs(strategy.model, x, experience.current_experience)
        assert all(torch.equal(outputs(strategy.model, x, key), out) for key, out in recorded.items())
    mask = strategy.model.subnetworks.task_mask(2)["4.weight"]
    assert mask.shape == (16, 54)
    whole = mask[:, :52].reshape(4, 4, 13, 4).sum(dim=(1, 3))
    assert set(whole.unique().tolist()) <= {0, 16}


@pytest.mark.parametrize("block", [(0, 4), (16,), (4.0, 4), (4, 4, 4)])
def test_blocks_that_are_none_say_so(block):
    with pytest.raises(TypeError, match="block must be a pair of positive whole numbers or None; got"):
        SupSup(lenet(), density=0.1, block=block)


def test_a_block_needs_a_density():
    with pytest.raises(ValueError, match="needs a density"):
        SupSup(lenet(), density=None, block=(4, 4))
