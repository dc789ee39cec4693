"""Every sample is once in a pass; joined batches have the same shares as with Avalanche's replay loader."""

from collections import Counter

import pytest
import torch
from avalanche.benchmarks.utils.data_loader import ReplayDataLoader

from avalanche_supermask.data.batches import JoinedBatches, TensorBatches
from avalanche_supermask.data.cached import load_tensors
from tests.streams import class_stream


@pytest.mark.parametrize("drop_last", [False, True])
def test_every_sample_comes_once_a_pass(drop_last):
    batches = TensorBatches([torch.arange(10), torch.arange(10) * 2], 4, shuffle=True, drop_last=drop_last)
    assert len(batches) == len(list(batches)) == (2 if drop_last else 3)
    first, second = ([torch.cat(column) for column in zip(*batches, strict=True)] for _ in range(2))
    for x, y in (first, second):
        assert len(x.unique()) == len(x) == (8 if drop_last else 10)
        assert torch.equal(y, 2 * x)
    assert not torch.equal(first[0], second[0])


def test_only_inputs_are_augmented():
    batches = TensorBatches([torch.arange(4), torch.arange(4)], 4, shuffle=False, augment=lambda x: x + 1)
    ((x, y),) = batches
    assert x.tolist() == [1, 2, 3, 4]
    assert y.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("cycle", [True, False])
@pytest.mark.parametrize("kept", [7, 30])
def test_joined_batches_have_the_shares_of_the_replay_loader(cycle, kept):
    now, before = (experience.dataset for experience in class_stream(2).train_stream)
    memory = before.subset(range(kept))
    loader = ReplayDataLoader(
        now, memory, oversample_small_tasks=cycle, batch_size=16, batch_size_mem=5, shuffle=True
    )  # fmt: skip
    parts = [
        TensorBatches(load_tensors(data, torch.device("cpu")), size, shuffle=True)
        for data, size in zip(loader.datasets, loader.batch_sizes, strict=True)
    ]
    ours = JoinedBatches(parts, main=loader.termination_dataset, cycle=cycle)
    assert len(ours) == len(loader)

    def shares(batches):
        return [Counter(t.tolist()) for _, _, t in batches]

    assert shares(ours) == shares(loader)
    times = [Counter(float(x.sum()) for batch, _, t in batches for x in batch[t == 0]) for batches in (ours, loader)]
    assert sorted(times[0].values()) == sorted(times[1].values()), "no sample of the memory comes more often than there"


def test_labels_of_one_task_are_one_tensor_for_all_batches_of_a_size():
    x, y = torch.arange(10), torch.arange(10)
    batches = TensorBatches([x, y, torch.full((10,), 3)], 4, shuffle=True)
    first, second, last = (labels for _, _, labels in batches)
    assert first is second
    assert (first.tolist(), last.tolist()) == ([3] * 4, [3] * 2)
    first.fill_(7)  # a plugin might change it like this
    assert [labels.tolist() for _, _, labels in batches] == [[3] * 4, [3] * 4, [3] * 2]


@pytest.mark.parametrize("shuffle", [False, True])
def test_labels_of_several_tasks_stay_with_their_samples(shuffle):
    x = torch.arange(10)
    for inputs, targets, labels in TensorBatches([x, x, x % 2], 4, shuffle=shuffle):
        assert torch.equal(labels, inputs % 2)
        assert torch.equal(targets, inputs)
