"""The samples that a method holds out, and those that are left to learn from."""

import pytest
import torch
from avalanche.benchmarks.utils import as_classification_dataset
from torch import nn
from torch.utils.data import TensorDataset

from avalanche_supermask import CLNP, RestoreBest, SupSup
from avalanche_supermask.data.held_out import hold_out
from tests.streams import class_stream


def dataset(n):
    data = TensorDataset(torch.arange(n).float(), torch.arange(n) % 2)
    data.targets = data.tensors[1].tolist()
    return as_classification_dataset(data)


@pytest.mark.parametrize(
    ("n", "batch_size", "held"),
    [
        (72, 32, 8),  # 7 samples would leave two batches of 32 and a single sample.
        (73, 32, 7),
        (71, 32, 7),
        (12, 32, 1),
        (2, 1, 0),
        (32, 1, 3),  # All batches have one sample.
        (37, 2, 5),  # 4 samples would leave 16 batches of 2 and a single sample.
    ],
)
def test_what_is_left_does_not_end_with_a_single_sample(n, batch_size, held):
    columns, rest = hold_out(dataset(n), share=0.1, seed=0, device=torch.device("cpu"), batch_size=batch_size)
    assert len(rest) == n - held
    assert len(columns[0]) == (held or n)
    if held:
        assert sorted([*columns[0].tolist(), *(rest[i][0].item() for i in range(len(rest)))]) == [*range(n)]


@pytest.mark.parametrize("make", [CLNP, lambda *a, **k: SupSup(*a, plugins=[RestoreBest()], **k)])
def test_batchnorm_learns_what_is_left(make):
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    strategy = make(net, train_epochs=2, train_mb_size=32, evaluator=None, seed=0)
    strategy.train(class_stream(1, n=72).train_stream[0])
    assert strategy.model.task_keys == [0]
