import pytest
import torch
from torch import nn

from avalanche_supermask.strategies.clnp.units import ALWAYS, find_units
from tests.strategies.clnp.networks import Branches, Depthwise, DepthwiseFirst, Joined, Tied, TwoInputs
from tests.streams import NETWORKS, ResNet, inputs, lenet, mlp

X = (inputs(2),)


def names(net):
    return frozenset(name for name, _ in net.named_parameters())


def test_an_mlp():
    units = find_units(mlp(), X, masked=names(mlp()))
    assert sorted(map(len, units.layers.values())) == [24, 24]
    assert units.count == 48
    assert (units.columns["1.weight"] == ALWAYS).all()
    assert torch.equal(units.columns["3.weight"], units.rows["1.weight"])
    assert torch.equal(units.columns["5.weight"], units.rows["3.bias"])
    assert (units.rows["5.weight"] == ALWAYS).all(), "outputs are no units"


def test_behind_a_flatten_a_channel_is_a_block_of_columns():
    units = find_units(lenet(), X, masked=names(lenet()))
    assert torch.equal(units.columns["4.weight"], units.rows["0.weight"].repeat_interleave(9))


def test_behind_a_concatenation_layers_stand_one_after_the_other():
    net = Branches()
    units = find_units(net, X, masked=names(net))
    a, b, c, d = (units.rows[f"{name}.weight"] for name in "abcd")
    assert units.count == 18
    assert len(torch.cat([a, b, c, d]).unique()) == 18
    for reader in ("c", "d"):
        assert torch.equal(units.columns[f"{reader}.weight"], torch.cat([a, b]))
    assert torch.equal(units.columns["fc.weight"], torch.cat([c, d]))


def test_a_residual_sum_ties_channels():
    units = find_units(ResNet(), X, masked=names(ResNet()))
    assert units.count == 8
    for name in ("stem.weight", "conv.weight", "bn1.weight", "bn2.bias"):
        assert torch.equal(units.rows[name], torch.arange(8))
    assert torch.equal(units.columns["conv.weight"], torch.arange(8))
    assert units.producers == {"conv": ("bn1", "bn2")}


def test_a_depthwise_channel_reads_itself():
    units = find_units(Depthwise(), X, masked=names(Depthwise()))
    assert torch.equal(units.rows["a.weight"], units.rows["dw.weight"])
    assert (units.columns["dw.weight"] == ALWAYS).all()
    assert torch.equal(units.columns["b.weight"], units.rows["a.weight"])


@pytest.mark.parametrize("network", ["transformer", "lstm"])
def test_what_mixes_channels_is_refused_by_name(network):
    net = NETWORKS[network]()
    with pytest.raises(ValueError, match=r"\((Transformer|LSTM)\) has weights, such as .*cannot prune single units"):
        find_units(net, X, masked=names(net))
    grouped = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(ValueError, match=r"module '2' \(Conv2d, grouped\)"):
        find_units(grouped, X, masked=names(grouped))
    norm = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"module '2' \(LayerNorm\)"):
        find_units(norm, X, masked=names(norm))


def test_what_mixes_channels_between_two_layers_is_refused_by_name():
    net = Joined("mean")
    with pytest.raises(ValueError, match=r"module 'b' reads several channels of 'a' in one input.*Use ExSSNeT"):
        find_units(net, X, masked=names(net))


def test_a_depthwise_layer_that_reads_the_inputs_has_units_of_its_own():
    units = find_units(DepthwiseFirst(), X, masked=names(DepthwiseFirst()))
    assert dict(units.layers) == {"b": range(8), "dw": range(8, 12)}
    assert torch.equal(units.columns["b.weight"], torch.arange(8, 12))


def test_layers_with_one_weight_have_the_same_units():
    net = Tied()
    units = find_units(net, X, masked=names(net))
    assert units.count == 16
    for name in ("a.weight", "a.bias", "b.weight", "b.bias", "c.bias"):
        assert torch.equal(units.rows[name], torch.arange(16))
    assert torch.equal(units.columns["b.weight"], torch.arange(16))


def test_a_layer_that_reads_inputs_and_then_units_is_refused():
    with pytest.raises(ValueError, match="module 'a' reads units in one call and inputs of the network in another"):
        find_units(TwoInputs(), X, masked=names(TwoInputs()))


def test_a_norm_without_parameters_has_the_units_of_what_it_normalises():
    net = Joined("plain norm")
    units = find_units(net, X, masked=names(net))
    assert torch.equal(units.channels["norm"], units.rows["a.weight"])
    assert units.producers["a"] == ("norm",)


def test_a_channel_of_a_layer_that_is_not_masked_is_no_unit():
    net = Joined("dense")
    units = find_units(net, X, masked=frozenset({"c.weight", "c.bias", "b.weight", "b.bias"}))
    assert (units.channels["a"] == ALWAYS).all()
    assert dict(units.layers) == {"b": range(12), "c": range(12, 20)}
    assert units.columns["b.weight"].tolist() == [ALWAYS] * 8 + [*range(12, 20)]
