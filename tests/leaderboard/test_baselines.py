"""Baselines work: each forgets less than naive, and the corrected SI has importances."""

import contextlib
import json

import pytest
import torch
from avalanche.models.packnet import PackNetModel
from avalanche.training.plugins import MASPlugin, SynapticIntelligencePlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.optim import SGD

from leaderboard.baselines import CorrectedMAS, CorrectedPackNet, CorrectedSI
from leaderboard.cell import Cell, settings_of
from leaderboard.pool import run_cells
from tests.streams import class_stream, mlp, train_all

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def importances(plugin):
    net = mlp()
    strategy = SupervisedTemplate(
        model=net, optimizer=SGD(net.parameters(), lr=0.05), plugins=[plugin], train_mb_size=16, train_epochs=3,
        evaluator=None,
    )  # fmt: skip
    train_all(strategy, class_stream(2))
    return torch.cat([entry.data.flatten() for entry in plugin.ewc_data[1].values()])


def test_the_corrected_si_has_importances_where_upstreams_has_none():
    assert (importances(SynapticIntelligencePlugin(si_lambda=1.0)) == 0).all(), "upstream mended SI: drop our subclass"
    assert (importances(CorrectedSI(si_lambda=1.0, eps=0.1)) != 0).any()


@pytest.mark.parametrize(("plugin", "stops"), [(MASPlugin, True), (CorrectedMAS, False)])
def test_the_corrected_mas_goes_on_at_a_loss_of_zero_where_upstreams_stops(plugin, stops):
    net = mlp()
    strategy = SupervisedTemplate(
        model=net, optimizer=SGD(net.parameters(), lr=0.05), criterion=lambda out, y: (out * 0).sum(), train_epochs=1,
        plugins=[plugin(lambda_reg=1.0)], evaluator=None,
    )  # fmt: skip
    with pytest.raises(ValueError, match="Loss is not available") if stops else contextlib.nullcontext():
        train_all(strategy, class_stream(2))


def test_the_corrected_packnet_takes_layers_without_biases_where_upstreams_fails():
    for make, expected in ((PackNetModel, AttributeError), (CorrectedPackNet, None)):
        model = make(nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)))
        model.prune(0.5)
        if expected is None:
            model.freeze_pruned()
            assert not model.wrappee[2].wrappee.bias.requires_grad
        else:
            with pytest.raises(expected):
                model.freeze_pruned()


def test_the_corrected_packnet_has_norms_a_task_and_moves_no_old_logit():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4, 2))
    with pytest.raises(ValueError, match="norms BatchNorm2d"):
        PackNetModel(nn.Sequential(nn.BatchNorm2d(4)))
    model, x = CorrectedPackNet(net), torch.randn(8, 1, 4, 4)

    def learn(task):
        labels = torch.full((8,), task)
        optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        model.train()
        for step in range(4):
            if step == 2:
                model.prune(0.5)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x + task, labels), torch.arange(8) % 2).backward()
            optimizer.step()
        model.freeze_pruned()

    def logits(task):
        model.eval()
        with torch.no_grad():
            return model(x, torch.full((8,), task))

    learn(0)
    first = logits(0)
    learn(1)
    assert torch.equal(logits(0), first)
    assert not torch.equal(logits(1), first)
    means = [norm.running_mean for norm in net[1].layers]
    assert not torch.equal(means[0], means[1])
    assert (means[2] == 0).all(), "the next task's is fresh"


def test_packnet_gives_each_task_a_dense_head_where_the_stream_has_one():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False))
    model = CorrectedPackNet(net, head="3")
    trained = model.train()(torch.randn(4, 16), torch.zeros(4, dtype=torch.long))
    trained.sum().backward()
    model.prune(0.5)
    model.freeze_pruned()
    assert len(net[3].layers) == 2
    assert (net[3].layers[0].weight != 0).all(), "the head is not pruned"
    assert not net[3].layers[0].weight.requires_grad
    assert net[3].layers[1].weight.requires_grad


FORGET_LESS = ("ewc", "ewc-online", "si", "mas", "lwf", "replay", "agem", "gem", "packnet", "cumulative", "separate")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("sanity")
    methods = ["naive", "joint", *FORGET_LESS]
    cells = [Cell("permuted-digits", m, 0, settings_of("permuted-digits", m), tasks=3) for m in methods]
    assert run_cells(cells, out=out, workers=2, quiet=True) == {}
    return {cell.method: json.loads((out / cell.path).read_text()) for cell in cells}


@pytest.mark.parametrize("method", FORGET_LESS)
def test_it_forgets_less_than_naive(method, results):
    assert results[method]["forgetting"] < results["naive"]["forgetting"] - 0.01
    assert results[method]["average_accuracy"] > results["naive"]["average_accuracy"]


@pytest.mark.parametrize("method", ["joint", "cumulative", "separate"])
def test_upper_bounds_are_above_every_baseline_that_keeps_no_data(method, results):
    assert all(
        results[method]["average_accuracy"] > results[other]["average_accuracy"]
        for other in ("ewc", "ewc-online", "si", "mas", "lwf")
    )


def test_der_forgets_less_than_naive_where_nobody_names_the_task(tmp_path):
    cells = [Cell("split-digits-class", m, 0, settings_of("split-digits-class", m), tasks=3) for m in ("naive", "der")]
    assert run_cells(cells, out=tmp_path, workers=2, quiet=True) == {}
    naive, der = (json.loads((tmp_path / cell.path).read_text()) for cell in cells)
    assert der["forgetting"] < naive["forgetting"] - 0.01
    assert der["average_accuracy"] > naive["average_accuracy"]
