"""The found sources of a layer's inputs agree with the forward pass of the network."""

import pytest
import torch
from torch import nn

from avalanche_supermask.strategies.clnp.channels import MIXED, NONE, sources
from tests.strategies.clnp.networks import ChannelsLast, FlatBranches, Joined, Tied
from tests.streams import ResNet, inputs

X = (inputs(2),)


def reads(net, reader, *producers):
    """Return the channels of each producer that the only call of a layer reads."""
    (call,) = sources(net, X)[reader]
    assert set(call) == set(producers)
    return [call[producer].tolist() for producer in producers]


def test_an_order_of_channels_is_found_as_it_is():
    assert reads(Joined("flip"), "b", "a") == [[7, 6, 5, 4, 3, 2, 1, 0]]
    assert reads(Joined("roll"), "b", "a") == [[5, 6, 7, 0, 1, 2, 3, 4]]
    assert reads(Joined("shuffle"), "b", "a") == [[0, 2, 4, 6, 1, 3, 5, 7]]
    assert reads(Joined("split"), "b", "a") == [[5, 6, 7, 0, 1, 2, 3, 4]]
    assert reads(Joined("instance norm"), "b", "a") == [[*range(8)]]


def test_inputs_of_the_network_come_from_no_layer():
    assert reads(Joined("input"), "b", "a") == [[NONE, *range(8)]]
    assert sources(Joined("input"), X)["a"] == [{}]


def test_a_layer_reads_all_that_reach_it_directly_and_nothing_else():
    gone = [NONE] * 8
    assert reads(Joined("dense"), "b", "a", "c") == [[*range(8), *gone], [*gone, *range(8)]]
    assert reads(Joined("residual"), "b", "a", "c") == [[*range(8)], [*range(8)]]
    assert reads(ResNet(), "bn2", "conv") == [[*range(8)]]
    assert reads(ResNet(), "fc", "bn1", "bn2") == [[*range(8)], [*range(8)]]


def test_several_channels_in_one_input_are_mixed():
    assert reads(Joined("mean"), "b", "a") == [[MIXED] * 8]
    (gated,) = sources(Joined("chunks"), X)["b"]
    assert gated["a"].tolist() == [MIXED] * 4 + [NONE] * 4


def test_flattened_channels():
    assert reads(ChannelsLast(), "fc", "conv") == [[*range(4)] * 16]
    a, b = reads(FlatBranches(), "fc", "a", "b")
    assert a == [channel for channel in range(4) for _ in range(16)] + [NONE] * 24
    assert b == [NONE] * 64 + [channel for channel in range(6) for _ in range(4)]


@pytest.mark.parametrize("width", [1, 2, 3, 17, 64])
def test_any_number_of_channels(width):
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, width), nn.Tanh(), nn.Linear(width, 2))
    assert reads(net, "3", "1") == [[*range(width)]]


def test_each_call_of_a_layer_is_one_entry():
    layer = nn.Linear(36, 36)
    first, second = sources(nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer), X)["1"]
    assert first == {}
    assert second["1"].tolist() == [*range(36)]
    assert [len(calls) for calls in sources(Tied(), X).values()] == [1, 1, 1, 1]


def test_the_network_stays_as_it_is_and_so_does_the_random_state():
    net = Joined("plain norm").train()
    before, state = {n: t.clone() for n, t in net.state_dict().items()}, torch.get_rng_state()
    sources(net, X)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert "forward" not in vars(net.a)


def test_a_batch_that_is_not_first_is_refused():
    class BatchSecond(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(36, 4)

        def forward(self, x):
            return self.fc(x.flatten(1).unsqueeze(0)).squeeze(0)

    with pytest.raises(ValueError, match=r"module 'fc' has an output of shape \(1, 2, 4\).*expected the batch"):
        sources(BatchSecond(), X)
