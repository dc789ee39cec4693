"""Minibatches that are a dictionary as a whole; the strategy unpacks them, as in Avalanche's Hugging Face example."""

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from torch.utils.data import default_collate

from tests.building import METHODS, build
from tests.streams import class_stream, inputs, mlp, train_all


class Samples(torch.utils.data.Dataset):
    def __init__(self, experience):
        self.samples = [experience.dataset[i] for i in range(len(experience.dataset))]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        x, y, *_ = self.samples[index]
        return {"pixels": x, "labels": y}


def of_dictionaries(method):
    """Return a subclass of the method's strategy class that unpacks dictionaries."""

    class Strategy(METHODS[method]):
        mb_x = property(lambda self: self.mbatch["pixels"])
        mb_y = property(lambda self: self.mbatch["labels"])
        mb_task_id = property(lambda self: torch.full((len(self.mb_y),), self.experience.current_experience))

        def _unpack_minibatch(self):
            self.mbatch = {name: tensor.to(self.device) for name, tensor in self.mbatch.items()}

        def forward(self):
            return self.model(self.mb_x, self.mb_task_id)

    return Strategy


VARIANTS = {
    "supsup": {},
    "exssnet": {},
    "exssnet, kkt": {"kkt": "knn_best"},
    "impresslearn": {},
    "sparse_finetuning": {"choose": "gradient"},
    "supsup, gaussian": {"task_inference": "gaussian"},
    "supsup, combined": {"task_inference": "combined"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_tasks_are_learned_as_from_pairs(variant, monkeypatch):
    method, pairs = variant.partition(",")[0], class_stream(2)
    learned = {}
    for form in ("pairs", "dictionaries"):
        torch.manual_seed(0)
        stream = pairs
        if form == "dictionaries":
            monkeypatch.setitem(METHODS, method, of_dictionaries(method))
            sets = [AvalancheDataset([Samples(e)], collate_fn=default_collate) for e in pairs.train_stream]
            stream = benchmark_from_datasets(train=sets)
        learned[form] = train_all(build(method, mlp(), **VARIANTS[variant]), stream).model
    for key in (0, 1):
        assert torch.equal(learned["pairs"](inputs(), key), learned["dictionaries"](inputs(), key))
