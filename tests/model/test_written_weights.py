"""A network that changes its own weights in place changes no finished task."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from avalanche_supermask import MaskedModel
from avalanche_supermask.model.network_call import NetworkCall
from tests.building import METHODS, build
from tests.streams import class_stream, inputs, outputs


class Cosine(nn.Module):
    """A classifier that normalises the rows of its last weight in every call."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(36, 24)
        self.rows = nn.Linear(24, 2, bias=False)

    def forward(self, x):
        self.change(self.rows.weight)
        return 5 * self.rows(F.normalize(self.hidden(x.flatten(1)).relu(), dim=1))


class ThroughData(Cosine):
    def change(self, weight):
        weight.data.div_(weight.data.norm(dim=1, keepdim=True) + 1e-8)


class Assigned(Cosine):
    def change(self, weight):
        weight.data = F.normalize(weight.data, dim=1)


class WithoutGradient(Cosine):
    @torch.no_grad()
    def change(self, weight):
        weight.mul_(0.9)


class MovingBias(Cosine):
    def change(self, weight):
        if self.training:
            self.hidden.bias.data.add_(0.1)


@pytest.mark.parametrize("network", [ThroughData, Assigned, WithoutGradient])
@pytest.mark.parametrize("method", ["supsup", "exssnet", "sparse_finetuning", "impresslearn"])
def test_finished_tasks_do_not_change(network, method):
    strategy = build(method, network(), head="masked")
    recorded = []
    for task, experience in enumerate(class_stream(3).train_stream):
        strategy.train(experience)
        recorded.append(outputs(strategy.model, inputs(), task))
        for earlier, before in enumerate(recorded):
            for _ in range(3):  # the first call, and calls on the fast path
                assert torch.equal(outputs(strategy.model, inputs(), earlier), before)
    exported = strategy.model.export(0)
    with torch.no_grad():
        assert torch.equal(exported(inputs()), recorded[0])
    assert torch.equal(outputs(copy.deepcopy(strategy.model), inputs(), 0), recorded[0])


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("clnp", "hopsupsup", "supsup_nns")])
def test_a_changed_parameter_that_tasks_share_is_restored_and_reported(method):
    strategy = build(method, MovingBias())
    shared = strategy.model.shared["hidden.bias"].clone()
    with pytest.warns(UserWarning, match=r"changes the frozen parameters 'hidden\.bias', .*own=\[\.\.\.\]"):
        strategy.train(class_stream(1).train_stream[0])
    assert torch.equal(strategy.model.shared["hidden.bias"], shared)


def test_a_changed_parameter_of_each_task_s_own_is_kept_for_each_task():
    strategy = build("exssnet", MovingBias(), own=[r"hidden\.bias"])
    recorded = []
    for task, experience in enumerate(class_stream(2).train_stream):
        strategy.train(experience)
        recorded.append(outputs(strategy.model, inputs(), task))
        assert strategy.model.tensors_of(task)["hidden.bias"].mean() > 0.3  # six steps of 0.1, and those of Adam
    assert torch.equal(outputs(strategy.model, inputs(), 0), recorded[0])


def test_weights_are_compared_in_the_first_call_of_each_mode_only(monkeypatch):
    compared = []
    equal = torch.equal
    monkeypatch.setattr(torch, "equal", lambda a, b: compared.append(1) or equal(a, b))
    model = MaskedModel(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), seed=0)
    for mode in (True, False, True, False):
        model.train(mode)(torch.ones(2, 4))
    assert len(compared) == 2 * 4  # two weights and two biases, in two modes


def test_weights_within_vmap_are_compared_later():
    net, call = nn.Linear(3, 2), NetworkCall()
    stacked = {"weight": torch.randn(4, 2, 3), "bias": torch.randn(4, 2)}
    x = torch.randn(5, 3)
    found = torch.func.vmap(lambda weights: call(net, weights, (x,)))(stacked)
    assert torch.allclose(found[1], functional_call(net, {name: t[1] for name, t in stacked.items()}, (x,)))
    assert not call.written.found
