"""A network whose copy would call the original is refused; functions that refer to nothing of it are accepted."""

import weakref
from functools import partial

import pytest
import torch
from torch import nn

from avalanche_supermask import HopSupSup, SparseFineTuning, SupSup, load, save
from avalanche_supermask.model.copied_functions import copy_of
from avalanche_supermask.pretrained import classifier
from tests.building import learn_nothing
from tests.streams import class_stream, inputs, mlp


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(36, 24), nn.Linear(24, 2)
        self.feature = None

    def forward(self, x):
        return self.out(self.run(x))

    def run(self, x):
        return self.hidden(x.flatten(1)).relu()


def closure(net):
    net.run = lambda x: net.hidden(x.flatten(1)).relu()


def in_a_list(net):
    net.steps = [{"first": lambda x: net.run(x)}]


def default(net):
    net.run = lambda x, layer=net.hidden: layer(x.flatten(1)).relu()


def of_a_parameter(net):
    weight = net.hidden.weight
    net.run = lambda x: (x.flatten(1) @ weight.T).relu()


def a_function_of_a_function(net):
    run = lambda x: net.hidden(x.flatten(1))  # noqa: E731
    net.run = lambda x: run(x).relu()


def bound_in_a_closure(net):
    run = net.run
    net.again = lambda x: run(x)


def hook(net):
    def store(module, args, output):
        net.feature = output

    net.hidden.register_forward_hook(store)


def weak(net):
    net.out.parent = weakref.ref(net)


REFUSED = [closure, in_a_list, default, of_a_parameter, a_function_of_a_function, bound_in_a_closure, hook, weak]


@pytest.mark.parametrize("change", REFUSED)
def test_what_a_copy_cannot_hold_is_refused(change):
    net = Net()
    change(net)
    for wrap in (SupSup, SparseFineTuning, HopSupSup, lambda net: classifier(net, 2)):
        with pytest.raises(ValueError, match=r"holds a function or a weak reference .*make the function a method") as e:
            wrap(net)
        assert "\n" not in str(e.value)


def test_a_network_for_a_file_is_checked_too(tmp_path):
    save(learn_nothing(SupSup(Net(), evaluator=None).model, 0), tmp_path / "file.safetensors")
    net = Net()
    closure(net)
    with pytest.raises(ValueError, match="the attribute 'run' of the network"):
        load(tmp_path / "file.safetensors", net)


def test_what_is_copied_with_the_network_or_refers_to_nothing_of_it_is_accepted():
    net, seen = Net(), []
    net.bound = net.run
    net.part = [partial(Net.run, net)]
    net.scale = lambda x: 2 * x
    net.hidden.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    copied = copy_of(net)
    assert copied.bound.__self__ is copied
    assert copied.part[0].args[0] is copied
    SupSup(net, train_epochs=1, train_mb_size=16, evaluator=None, seed=0).train(class_stream(1).train_stream[0])
    assert seen


def test_a_compiled_network_is_accepted():
    assert torch.equal(copy_of(torch.compile(mlp(), backend="eager"))(inputs()).isfinite(), torch.ones(16, 2).bool())
