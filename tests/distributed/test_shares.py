"""Shares of batches, joined batches, and random numbers that must be equal in all processes."""

import random

import numpy as np
import pytest
import torch

from avalanche_supermask.data.batches import TensorBatches
from avalanche_supermask.distributed import SampleShare, shared_permutation
from avalanche_supermask.distributed.random_states import draw_alike, draw_apart
from avalanche_supermask.distributed.whole_batches import gathered, whole, whole_outputs
from tests.distributed.processes import group_of


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("n", [12, 13, 14, 17])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_shares_of_all_processes_are_the_batches_of_one(n, size, drop_last):
    alone = list(TensorBatches([torch.arange(n)], 2 * size, shuffle=False, drop_last=drop_last))
    loaders = [
        TensorBatches([torch.arange(n)], 2, shuffle=False, drop_last=drop_last, share=SampleShare(rank, size))
        for rank in range(size)
    ]
    assert {len(loader) for loader in loaders} == {len(alone)}
    for batch, *shares in zip(alone, *loaders, strict=True):
        counted = [share[0][: loader.counts] for share, loader in zip(shares, loaders, strict=True)]
        assert all(len(share[0]) for share in shares), "BatchNorm and a mean need a sample"
        assert sorted(torch.cat(counted).tolist()) == batch[0].tolist()


def permutations(rank, size):
    torch.manual_seed(3 if rank == 0 else 30 + rank)
    before = torch.get_rng_state()
    found = [shared_permutation(9).tolist(), shared_permutation(9).tolist()]
    return found, torch.equal(before, torch.get_rng_state())


def test_the_order_is_that_which_rank_0_would_draw_alone():
    torch.manual_seed(3)
    expected = [torch.randperm(9).tolist(), torch.randperm(9).tolist()]
    (first, untouched), (second, others_untouched) = group_of(2).run(permutations, 2)
    assert first == second == expected
    assert not untouched
    assert others_untouched


def numbers(rank):
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(rank)

    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    found = [draw()]
    draw_apart()
    found.append((float(torch.rand(())),))
    draw_alike()
    return [*found, draw()]


def test_random_numbers_are_apart_within_an_epoch_and_alike_after_it():
    first, second = group_of(2).run(numbers)
    assert first[0] != second[0]
    assert first[1] != second[1]
    assert first[2] == second[2]


def put_together(rank):
    rows = [1, 3]
    x = torch.arange(rows[rank]) + 10 * rank
    mine = {"logits": torch.stack([x, -x], dim=1).float(), "pair": (x, x.bool()), "loss": torch.tensor(0.5)}
    return whole(mine, rows=rows)


def test_a_batch_of_any_form_is_put_together():
    for found in group_of(2).run(put_together):
        assert found["logits"][:, 0].tolist() == [0, 10, 11, 12]
        assert found["pair"][0].tolist() == [0, 10, 11, 12]
        assert found["pair"][1].tolist() == [False, True, True, True]
        assert found["loss"] == 0.5


def dealt(rank):
    share = SampleShare.here(equal=True).of(torch.arange(5))
    return whole(share, rows=[len(share)] * 3, dealt=True)[:5].tolist(), gathered([share])[2][0].tolist()


def test_what_was_dealt_out_comes_back_in_order():
    assert group_of(3).run(dealt) == [([0, 1, 2, 3, 4], [2, 0])] * 3


def latest_outputs(rank):
    outputs = [torch.full((1, 2), -1.0), *(torch.full((rank + 1, 2), float(i)) for i in range(2))]
    whole_outputs(outputs, latest=2)
    return [out[:, 0].tolist() for out in outputs]


def test_the_latest_outputs_are_those_of_all():
    assert group_of(2).run(latest_outputs) == [[[-1.0], [0.0, 1.0, 0.0, 0.0, 1.0, 1.0]]] * 2
