"""The output layer of a task is fitted first: against a loop written by hand, and where it is left alone."""

import math

import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from torch import nn

from avalanche_supermask import SparseFineTuning, SparseFineTuningPlugin
from tests.streams import class_stream, mlp, train_all

EPOCHS, BATCH = 4, 8


class Watching(SparseFineTuningPlugin):
    """Keeps the output layer as it is after the fit, before anything else trains."""

    def begin_task(self, strategy, model):
        super().begin_task(strategy, model)
        layer = [m for m in model.net.modules() if isinstance(m, nn.Linear)][-1]
        self.fitted = {name: p.detach().clone() for name, p in layer.named_parameters()}
        self.gradients = [p.grad for p in layer.parameters()]


def watched(net, **arguments):
    strategy = SparseFineTuning(
        net, density=0.1, train_epochs=1, train_mb_size=BATCH, evaluator=None, seed=3, **arguments
    )
    method = strategy.method
    method.__class__ = Watching
    return strategy


def labelled(x, y):
    return tensors_benchmark(train_tensors=[(x, y)], test_tensors=[(x, y)], task_labels=[0])


def problem(n=32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 6, generator=generator)
    return x, (x[:, 0] > 0).long()


def test_the_fit_is_adam_on_the_features_of_the_base():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 2))
    x, y = problem()
    strategy = watched(net, head_epochs=EPOCHS)
    strategy.train(labelled(x, y).train_stream[0])
    assert strategy.method.settings_used["head_epochs"] == EPOCHS

    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        features = net.eval()[:-1](x)
    layer, step = net[-1], 0
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.0)
    for _ in range(EPOCHS):
        for rows in order.split(BATCH):
            rate = 0.1 / math.sqrt(9) * 0.5 * (1 + math.cos(math.pi * step / (EPOCHS * 4)))
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(features[rows]), y[rows]).backward()
            optimizer.step()
            step += 1
    for name, fitted in strategy.method.fitted.items():
        torch.testing.assert_close(fitted, layer.get_parameter(name).detach())
    assert strategy.method.gradients == [None, None]


class Probabilities(nn.Module):
    """The outputs are not those of the last layer."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        return self.net(x).log_softmax(dim=1)


def test_every_task_starts_from_the_same_output_layer():
    net = mlp()
    one, two = (train_all(watched(net, head_epochs=0), class_stream(tasks)) for tasks in (1, 2))
    for name, fitted in one.method.fitted.items():
        assert torch.equal(two.method.fitted[name], fitted)


@pytest.mark.parametrize(("net", "arguments"), [(Probabilities, {}), (mlp, {"head": "masked"})])
def test_a_layer_that_cannot_be_fitted_alone_is_left_as_it_was(net, arguments):
    torch.manual_seed(0)
    network = net()
    runs = [train_all(watched(network, head_epochs=epochs, **arguments), class_stream(1)) for epochs in (EPOCHS, 0)]
    assert [run.method.settings_used["head_epochs"] for run in runs] == [0, 0]
    for name, fitted in runs[0].method.fitted.items():
        assert torch.equal(fitted, runs[1].method.fitted[name])


def test_a_loss_that_is_not_finite_leaves_the_layer_as_it_was():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 2))
    x, y = problem()
    x[5] = math.nan
    strategy = watched(net, choose="magnitude", head_epochs=EPOCHS)
    with pytest.raises(FloatingPointError, match="the loss of task 0 is NaN"):  # the training itself
        strategy.train(labelled(x, y).train_stream[0])
    assert strategy.method.settings_used["head_epochs"] == 0
    for name, fitted in strategy.method.fitted.items():
        assert torch.equal(fitted, net[-1].get_parameter(name))


def test_a_negative_number_of_epochs_is_refused():
    with pytest.raises(ValueError, match="head_epochs must be a whole number of at least 0; got -1"):
        SparseFineTuning(mlp(), head_epochs=-1)
