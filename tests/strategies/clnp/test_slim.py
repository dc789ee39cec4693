"""The slim copy agrees with the network in which the same units are set to zero."""

import warnings

import pytest
import torch
from torch import nn

from avalanche_supermask.strategies.clnp.slim import slim
from avalanche_supermask.strategies.clnp.units import find_units
from tests.strategies.clnp.networks import (
    Branches,
    ChannelsLast,
    Depthwise,
    DepthwiseFirst,
    FlatBranches,
    Joined,
    Tied,
)
from tests.streams import ResNet, inputs, lenet, mlp

X = (inputs(2),)
JOINED = ("input", "flip", "dense", "residual", "plain norm")
NETWORKS = [mlp, lenet, ResNet, Depthwise, Branches, FlatBranches, ChannelsLast, Tied]
CUT = {**{make.__name__: make for make in NETWORKS}, **{how: lambda how=how: Joined(how) for how in JOINED}}
# Their first layers depend on the number of channels, or each channel reads one input.
WHOLE = {how: lambda how=how: Joined(how) for how in ("shuffle", "roll")} | {"depthwise": DepthwiseFirst}


def silenced(net, seed=0):
    """Set the entries of a random half of the units to zero, in the layers that compute and that read them."""
    net.eval()
    units = find_units(net, X, masked=frozenset(name for name, _ in net.named_parameters()))
    keep = torch.rand(units.count, generator=torch.Generator().manual_seed(seed)) < 0.5
    gone = torch.cat([~keep, torch.tensor([False])])
    with torch.no_grad():
        for name, p in net.named_parameters():
            p[gone[units.rows[name]]] = 0
            if name in units.columns and len(units.columns[name]) == p.shape[1]:
                p[:, gone[units.columns[name]]] = 0
    return units, keep


def size(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", CUT)
def test_outputs_are_equal_and_every_layer_is_smaller(name):
    torch.manual_seed(1)
    net = CUT[name]()
    units, keep = silenced(net)
    small = slim(net, X, units, keep)
    with torch.no_grad():
        torch.testing.assert_close(small(inputs()), net(inputs()), atol=1e-5, rtol=1e-5)
    for layer, ids in units.layers.items():
        assert small.get_submodule(layer).weight.shape[0] == max(1, int(keep[ids.start : ids.stop].sum()))


@pytest.mark.parametrize("name", WHOLE)
def test_a_layer_that_cannot_be_cut_stays_whole_and_the_others_do_not(name):
    torch.manual_seed(1)
    net = WHOLE[name]()
    units, keep = silenced(net)
    *others, first = units.layers
    with pytest.warns(UserWarning, match=f"the slim network keeps all units of '{first}', although"):
        small = slim(net, X, units, keep)
    with torch.no_grad():
        torch.testing.assert_close(small(inputs()), net(inputs()), atol=1e-5, rtol=1e-5)
    assert small.get_submodule(first).weight.shape == net.get_submodule(first).weight.shape
    for layer in others:
        assert len(small.get_submodule(layer).weight) < len(net.get_submodule(layer).weight)


def test_units_that_speak_when_they_are_zero_stay():
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Sigmoid(), nn.Linear(8, 2))
    units = find_units(net, X, masked=frozenset({"1.weight", "1.bias"}))
    keep = torch.arange(8) < 4
    with torch.no_grad():
        net[1].weight[4:] = 0
        net[1].bias[4:] = 0
    with pytest.warns(UserWarning, match="keeps all units of '1', although"):
        assert size(slim(net, X, units, keep)) == size(net)


def test_a_layer_without_a_unit_keeps_one():
    net = mlp()
    units, _ = silenced(net)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    small = slim(net, X, units, torch.zeros(units.count, dtype=torch.bool))
    assert [len(small[i].weight) for i in (1, 3)] == [1, 1]


def test_the_network_is_left_alone_and_layers_go_on_to_share_a_weight():
    net = Tied()
    units, keep = silenced(net)
    before = size(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = slim(net, X, units, keep)
    assert size(net) == before > size(small)
    assert small.b.weight is small.c.weight
