"""A batch without samples has an empty output in the shape of the network's, in every way of finding the task."""

import functools

import pytest
import torch
from avalanche.models import IncrementalClassifier
from torch import nn

from avalanche_supermask import ImpressLearn, MaskedModel, SupSup
from avalanche_supermask.inference import Binary, Combined, Entropy, Gaussian, MaxLogit, OneShot
from avalanche_supermask.selection import selection
from tests.building import learn_nothing
from tests.streams import NETWORKS, class_stream, inputs, mlp, train_all

NO_LABELS = torch.zeros(0, dtype=torch.long)
WAYS = [
    "given", "oneshot", "binary", "entropy", "expected_entropy", "max_logit", "gaussian", OneShot(per="batch"),
    Binary(per="batch"), Entropy(per="batch"), MaxLogit(per="batch"), Gaussian(per="batch"), Gaussian(layers=("3",)),
    Gaussian(names="class"), Combined(),
]  # fmt: skip


@functools.cache
def learned(kind=SupSup, **settings):
    settings = {"train_mb_size": 16, "evaluator": None, "seed": 0, "task_inference": Combined(), **settings}
    return train_all(kind(mlp(), **settings), class_stream(3, n=32)).model.eval()


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_inference_returns_an_empty_output(way):
    model = learned() if way in ("given", Combined()) else learned(task_inference=way)
    model.task_inference = way
    x = inputs(4)
    for labels in ([], NO_LABELS, NO_LABELS.int(), 0, torch.tensor([1])):
        with torch.no_grad():
            assert model(x[:0], labels).shape == model(x, torch.tensor([0, 1, 2, 0]))[:0].shape
            model(x[:0], labels)
        if way != "given":
            assert model.inferred_task.tolist() == []
            assert model.inferred_task.dtype == torch.long


def test_entropy_descent_returns_an_empty_output():
    model = learned(ImpressLearn, n_basis=2, task_inference="entropy_descent")
    assert model(inputs(4)[:0]).shape == (0, 2)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_mixed_batch_of_no_samples(network):
    model = learn_nothing(learn_nothing(MaskedModel(NETWORKS[network](), seed=0), 0), 1).eval()
    x = inputs(4)
    whole = model(x, torch.tensor([0, 1, 0, 1]))
    assert model(x[:0], NO_LABELS).shape == whole[:0].shape
    for execution in ("sparse", "auto") if network == "mlp" else ():
        model.execution = execution
        assert model(x[:0], NO_LABELS).shape == whole[:0].shape


def test_before_the_first_task_and_in_training():
    model = MaskedModel(mlp(), seed=0)
    assert model.eval()(inputs(4)[:0], NO_LABELS).shape == (0, 2)
    model.begin(0, 0)
    model.set_scores(model.fresh_scores(0))
    model.learn_scores(selection(model.masked_shapes, density=0.3))
    out = model.train()(inputs(4)[:0], NO_LABELS)
    assert out.shape == (0, 2)
    out.sum().backward()


def test_structures_and_heads_of_different_widths():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.out = nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, a, *, b):
            h = self.body(a + b).relu()
            return {"hidden": h, "logits": self.out(h), "scale": 1.0}

    model = learn_nothing(learn_nothing(MaskedModel(Pair(), seed=0), 0), 1).eval()
    for way in ("given", "entropy", "oneshot"):
        model.task_inference = way
        found = model(torch.zeros(0, 6), NO_LABELS, b=torch.zeros(0, 6))
        assert (found["hidden"].shape, found["logits"].shape, found["scale"]) == ((0, 5), (0, 2), 1.0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), IncrementalClassifier(8, 3))
    assert learn_nothing(MaskedModel(net, seed=0), 0).eval()(inputs(2)[:0], NO_LABELS).shape == (0, 3)


def test_labels_must_fit_the_batch():
    model = learned()
    model.task_inference = "given"
    with pytest.raises(ValueError, match="got 0 task labels for a batch of 4 samples; expected one label per sample"):
        model(inputs(4), NO_LABELS)
    with pytest.raises(ValueError, match="got 2 task labels for a batch of 0 samples"):
        model(inputs(4)[:0], torch.tensor([0, 1]))
