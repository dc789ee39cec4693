"""A direct call equals `torch.func.functional_call`, bit for bit, and does not change the network."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from avalanche_supermask import MaskedModel
from avalanche_supermask.inference import OneShot
from avalanche_supermask.model.network_call import NetworkCall
from avalanche_supermask.selection import selection
from tests import test_compatibility
from tests.building import learn_nothing
from tests.streams import NETWORKS, TiedEmbedding, inputs, mlp, outputs

IMAGES = {name: (make, (4, 3, 32, 32)) for name, make in test_compatibility.NETWORKS.items()}


class Recurrent(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.out = nn.Linear(16, 2)

    def forward(self, x):
        return self.out(self.layer(x.squeeze(1))[0][:, -1])


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(36, 36), nn.BatchNorm1d(36))
        self.second = self.first
        self.last = nn.Linear(36, 2)

    def forward(self, x):
        return self.last(self.second(self.first(x.flatten(1)).relu()).relu())


ALL = {
    **{name: (make, (4, 1, 6, 6)) for name, make in NETWORKS.items()},
    **IMAGES,
    "tied": (TiedEmbedding, (4, 1, 6, 6)),
    "used twice": (Twice, (4, 1, 6, 6)),
    "bidirectional": (lambda: Recurrent(nn.GRU(6, 8, 2, batch_first=True, bidirectional=True)), (4, 1, 6, 6)),
    "projected": (lambda: Recurrent(nn.LSTM(6, 20, proj_size=16, batch_first=True)), (4, 1, 6, 6)),
    "weight norm": (lambda: nn.Sequential(nn.Flatten(), weight_norm(nn.Linear(36, 2))), (4, 1, 6, 6)),
    "spectral norm": (lambda: nn.Sequential(nn.Flatten(), spectral_norm(nn.Linear(36, 2))), (4, 1, 6, 6)),
}


def other_tensors(net):
    """Return random tensors for all parameters, one name each, and copies of all buffers."""
    tensors = {name: torch.randn_like(p).div(8).requires_grad_() for name, p in net.named_parameters()}
    return {**tensors, **{name: b.clone() for name, b in net.named_buffers()}}


def state_of(net):
    return {
        (id(holder), key): tensor
        for module in net.modules()
        for holder in (module._parameters, module._buffers)
        for key, tensor in holder.items()
    }


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("network", ALL)
def test_outputs_gradients_and_buffers_of_functional_call(network, training):
    make, shape = ALL[network]
    net, x = make().train(training), torch.rand(shape)
    before = state_of(net)

    def found(call):
        torch.manual_seed(1)  # Both calls use the same tensors and the same dropout.
        tensors = other_tensors(net)
        out = call(tensors)
        learning = [t for t in tensors.values() if t.requires_grad]
        grads = torch.autograd.grad(out.square().sum(), learning, allow_unused=True)
        return [out, *(g for g in grads if g is not None), *(t for t in tensors.values() if not t.requires_grad)]

    call = NetworkCall()
    ours = found(lambda tensors: call(net, tensors, (x,)))
    after = state_of(net)
    assert before.keys() == after.keys()
    assert all(after[place] is tensor for place, tensor in before.items())
    theirs = found(lambda tensors: functional_call(net, tensors, (x,)))
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_an_error_leaves_the_network_as_it_was():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x):
            raise ArithmeticError(float(self.inner.weight.detach().sum()))

    net, call = Fails(), NetworkCall()
    before = state_of(net)
    with pytest.raises(ArithmeticError, match=r"^4\.0$"):
        call(net, {"inner.weight": torch.ones(2, 2)}, (torch.ones(1, 2),))
    assert state_of(net) == before
    with pytest.raises(KeyError, match="missing"):
        call(net, {"inner.weight": torch.ones(2, 2), "missing": torch.ones(1)}, (torch.ones(1, 2),))
    assert state_of(net) == before


def test_a_call_within_a_call():
    call, net = NetworkCall(), nn.Linear(1, 1, bias=False)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net

        def forward(self, x):
            before = self.inner(x)
            other = call(self, {"inner.weight": torch.full((1, 1), 5.0)}, (x,)) if self.inner.weight == 3 else 0
            return before + 10 * other + 100 * self.inner(x)

    out = call(Outer(), {"inner.weight": torch.full((1, 1), 3.0)}, (torch.ones(1, 1),))
    assert out.item() == 3 + 10 * (5 + 500) + 300


def test_keywords_reach_the_network():
    class Keywords(nn.Linear):
        def forward(self, x, *, times):
            return times * super().forward(x)

    net = Keywords(1, 1, bias=False)
    assert NetworkCall()(net, {"weight": torch.ones(1, 1)}, (torch.ones(1, 1),), {"times": 3}).item() == 3


def test_a_layer_that_is_replaced_or_added_is_found():
    net, call, x = nn.Sequential(nn.Linear(1, 1, bias=False)), NetworkCall(), torch.ones(1, 1)
    two = {"0.weight": torch.full((1, 1), 2.0)}
    assert call(net, two, (x,)).item() == 2
    net[0] = nn.Linear(1, 1, bias=False)
    assert call(net, two, (x,)).item() == 2
    net.append(nn.Linear(1, 1, bias=False))
    assert call(net, {**two, "1.weight": torch.full((1, 1), 3.0)}, (x,)).item() == 6


def test_copies_and_pickles_serve_their_own_network():
    model = learn_nothing(MaskedModel(mlp(), seed=0), 0)
    x = inputs()
    before = outputs(model, x, 0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.call is not model.call
        assert torch.equal(outputs(other, x, 0), before)


def test_vmap_over_inputs_and_over_weights():
    model = learn_nothing(MaskedModel(NETWORKS["resnet"](), seed=0), 0).eval()
    x = inputs(3)
    with torch.no_grad():
        rows = torch.func.vmap(lambda row: model(row.unsqueeze(0), 0))(x)
    assert torch.allclose(rows.squeeze(1), outputs(model, x, 0), atol=1e-5)
    net, call = nn.Linear(2, 1, bias=False), NetworkCall()
    stacked = torch.arange(6.0).reshape(3, 1, 2)
    found = torch.func.vmap(lambda w: call(net, {"weight": w}, (torch.ones(2),)))(stacked)
    assert found.flatten().tolist() == [1.0, 5.0, 9.0]


@pytest.mark.parametrize("network", ["mlp", "resnet", "lstm"])
@pytest.mark.parametrize("inference", ["given", OneShot(per="batch")])
def test_threads_get_the_answers_of_their_own_tasks(network, inference):
    model = MaskedModel(NETWORKS[network](), seed=0)
    for key in range(4):
        learn_nothing(model, key)
    model.begin(4, 4)
    model.learn_scores(selection(model.masked_shapes, density=0.3))
    model.eval()
    x = inputs(64).split(16)
    want = [outputs(model, part, key) for key, part in enumerate(x)]
    if inference != "given":
        model.abandon()
        model.task_inference = inference
        want = [outputs(model, part, key) for key, part in enumerate(x)]
    model._clear_kept()

    def wrong(i):
        with torch.no_grad():
            return not torch.equal(model(x[i % 4], i % 4), want[i % 4])

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(wrong, range(60))) == 0
