"""With activation checkpointing, gradients equal those without it, in every phase."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from avalanche_supermask import MaskedModel
from avalanche_supermask.model.checkpointed_calls import CURRENT
from avalanche_supermask.selection import selection
from tests.building import learn_nothing

X = torch.randn(8, 12, generator=torch.Generator().manual_seed(1))
WAYS = [None, True, False]  # without checkpointing, reentrant, not reentrant


def run(way, function, *args):
    return function(*args) if way is None else checkpoint(function, *args, use_reentrant=way)


class Net(nn.Module):
    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.a, self.b, self.c = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 2)


class Method(Net):
    def block(self, x):
        return self.b(x.relu()).relu()

    def forward(self, x):
        return self.c(run(self.way, self.block, self.a(x)))


class FromTheFirstLayer(Net):  # No input of the first checkpointed part needs a gradient.
    def forward(self, x):
        return self.c(run(self.way, lambda x: self.b(self.a(x).relu()), x).relu())


class Functional(Net):  # The checkpointed part calls no module.
    def block(self, x):
        return nn.functional.linear(x.tanh(), self.b.weight, self.b.bias).relu()

    def forward(self, x):
        return self.c(run(self.way, self.block, self.a(x)))


class Nested(Net):
    def inner(self, x):
        return self.b(x).relu()

    def outer(self, x):
        return self.a(run(self.way, self.inner, x).tanh())

    def forward(self, x):
        return self.c(run(self.way, self.outer, self.a(x)))


class UsedInTwoParts(Net):
    def block(self, x):
        return self.b(x).relu()

    def forward(self, x):
        x = run(self.way, self.block, self.a(x))
        return self.c(run(self.way, self.block, x) + self.b(x))


class Sequential(Net):
    def forward(self, x):
        parts = nn.Sequential(self.a, nn.ReLU(), self.b, nn.Tanh(), self.c)
        return parts(x) if self.way is None else checkpoint_sequential(parts, 2, x, use_reentrant=self.way)


class Dropped(Net):
    def block(self, x):
        return nn.functional.dropout(self.b(x).relu(), 0.5)

    def forward(self, x):
        return self.c(run(self.way, self.block, self.a(x)))


NETWORKS = [Method, FromTheFirstLayer, Functional, Nested, UsedInTwoParts, Sequential, Dropped]


def learning(net, phase):
    """Return a model with a finished task, in a phase of the next task."""
    model = learn_nothing(MaskedModel(net, seed=0, per_task="all"), 0).train()
    model.begin(1, 1)
    model.subnetworks.set_scores(model.fresh_scores(1))
    select = selection(model.masked_shapes, density=0.5)
    free = {name: ~mask for name, mask in model.owned().items()}
    if phase == "coefficients":
        model.subnetworks.add_to_basis(0)
        model.subnetworks.add_to_basis({n: select.mask(n, s) for n, s in model.subnetworks.scores.items()})
        model.subnetworks.mixtures.allocate(model.masked_names, model.subnetworks.frozen["a.weight"], 2)
        model.learn_coefficients(own={"c.weight"}, select=select)
    else:
        model.learn_scores(select, trainable=free if phase == "both" else None)
    if phase == "weights":
        model.learn_weights(free)
    return model


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def same(found, want):
    assert found.keys() == want.keys()
    for name, grad in want.items():
        torch.testing.assert_close(found[name], grad, msg=name)


@pytest.mark.parametrize("way", [True, False])
@pytest.mark.parametrize("phase", ["scores", "weights", "both", "coefficients"])
@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_are_those_without_checkpointing(network, phase, way):
    found = []
    for how in (None, way):
        model = learning(network(how), phase)
        torch.manual_seed(3)
        model(X, 1).square().sum().backward()
        found.append(gradients(model))
    assert all(bool(g.any()) for name, g in found[0].items() if "weight" in name)
    same(found[1], found[0])


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # PyTorch's warning if no input has
@pytest.mark.parametrize("way", [True, False])
@pytest.mark.parametrize("network", [Method, Nested])
def test_several_calls_before_one_backward_pass(network, way):
    """In the backward pass of a mixed batch and a second forward pass, each part uses the weights of its own call."""
    found = []
    for how in (None, way):
        model = learning(network(how), "scores")
        x = X.clone().requires_grad_()
        loss = model(x, torch.tensor([0, 1] * 4)).square().sum()
        with torch.no_grad():
            model(X, 0)
        (loss + model(x, 1).exp().sum()).backward()
        found.append({**gradients(model), "input": x.grad})
    same(found[1], found[0])


@pytest.mark.parametrize("way", [True, False])
def test_the_network_has_its_own_tensors_after_the_backward_pass(way):
    model = learning(Nested(way), "weights")
    before = [*model.net.named_parameters()]
    model(X, 1).sum().backward()
    assert all(a is b for (_, a), (_, b) in zip(before, model.net.named_parameters(), strict=True))
    assert CURRENT.get() is None


@pytest.mark.parametrize("way", [True, False])
def test_the_users_saved_tensor_hooks_are_theirs(way):
    """`torch.autograd.graph.save_on_cpu` and activation offloading use such hooks."""
    model, packed = learning(Method(way), "scores"), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        loss = model(X, 1).square().sum()
    loss.backward()
    want = learning(Method(None), "scores")
    want(X, 1).square().sum().backward()
    assert packed
    same(gradients(model), gradients(want))


@pytest.mark.parametrize("way", [True, False])
def test_other_networks_are_checkpointed_as_ever(way):
    found = []
    for how in (None, way):
        net = Method(how)
        net(X).sum().backward()
        found.append({name: p.grad for name, p in net.named_parameters()})
    same(found[1], found[0])


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("way", [True, False])
def test_hugging_face(way):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=12,
    )  # fmt: skip
    ids = torch.arange(12).reshape(2, 6)

    class Classifier(nn.Module):
        def __init__(self, how):
            super().__init__()
            torch.manual_seed(0)
            self.bert, self.out = transformers.BertModel(config), nn.Linear(16, 2)
            if how is not None:
                self.bert.gradient_checkpointing_enable({"use_reentrant": how})

        def forward(self, x):
            return self.out(self.bert(x).last_hidden_state[:, 0])

    found = []
    for how in (None, way):
        model = MaskedModel(Classifier(how), seed=0, init="keep").train()
        model.begin(0, 0)
        model.subnetworks.set_scores(model.fresh_scores(0))
        model.learn_scores(selection(model.masked_shapes, density=0.5))
        torch.manual_seed(5)
        model(ids, 0).square().sum().backward()
        found.append(gradients(model))
    assert len(found[0]) > 10
    same(found[1], found[0])
