import sys

import pytest
import torch
from torch import nn

from avalanche_supermask.strategies.clnp.units import ALWAYS, find_units, slim
from tests.streams import NETWORKS, ResNet, inputs, lenet, mlp

X = (inputs(2),)


def names(net):
    return frozenset(name for name, _ in net.named_parameters())


class Depthwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.dw, self.b = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1)
        self.fc = nn.Linear(16, 2)

    def forward(self, x):
        return self.fc(self.b(self.dw(self.a(x).relu()).relu()).relu().flatten(1))


class Branches(nn.Module):
    """Two convolutions side by side, read by a third behind a concatenation; two more, pooled, by the output layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 6, 3)
        self.c, self.d = nn.Conv2d(10, 5, 3), nn.Conv2d(10, 3, 1)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        wide = torch.cat([self.a(x).relu(), self.b(x).relu()], dim=1)
        return self.fc(torch.cat([branch(wide).relu().amax(dim=(2, 3)) for branch in (self.c, self.d)], dim=1))


class FlatBranches(nn.Module):
    """Flattened before they are concatenated, with blocks of different size: Torch-Pruning takes them for tied."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3)
        self.fc = nn.Linear(16 * 4 + 4 * 6, 2)

    def forward(self, x):
        a = self.a(x).relu()
        return self.fc(torch.cat([a.flatten(1), self.b(a).relu().flatten(1)], dim=1))


def test_without_torch_pruning_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ImportError, match=r"pip install 'avalanche-supermask\[graph\]'"):
        find_units(mlp(), X, masked=names(mlp()))


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
    assert set(next(iter(units.producers.values()))) == {"bn1", "bn2"}


def test_a_depthwise_channel_reads_itself():
    units = find_units(Depthwise(), X, masked=names(Depthwise()))
    assert torch.equal(units.rows["a.weight"], units.rows["dw.weight"])
    assert (units.columns["dw.weight"] == ALWAYS).all()
    assert torch.equal(units.columns["b.weight"], units.rows["a.weight"])


@pytest.mark.parametrize("network", ["transformer", "lstm"])
def test_what_mixes_channels_is_refused_by_name(network):
    net = NETWORKS[network]()
    with pytest.raises(ValueError, match="mixes or renumbers channels"):
        find_units(net, X, masked=names(net))
    grouped = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(ValueError, match=r"module '2' \(Conv2d, grouped\)"):
        find_units(grouped, X, masked=names(grouped))
    norm = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"module '2' \(LayerNorm\)"):
        find_units(norm, X, masked=names(norm))


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(64, 2)

    def forward(self, x):
        return self.fc(self.conv(x).relu().permute(0, 2, 3, 1).flatten(1))


def test_an_unusual_flatten_is_refused_not_misread():
    with pytest.raises(ValueError, match="channel by channel"):
        find_units(ChannelsLast(), X, masked=names(ChannelsLast()))
    with pytest.raises(ValueError, match="cannot be told apart"):
        find_units(FlatBranches(), X, masked=names(FlatBranches()))


@pytest.mark.parametrize("make", [mlp, lenet, ResNet, Depthwise, Branches])
def test_slim_equals_a_network_whose_removed_units_are_silent(make):
    net = make().eval()
    units = find_units(net, X, masked=names(net))
    generator = torch.Generator().manual_seed(0)
    keep = {layer: torch.rand(len(ids), generator=generator) < 0.5 for layer, ids in units.layers.items()}
    silent = torch.cat([~keep[layer] for layer in units.layers] + [torch.tensor([False])])
    with torch.no_grad():
        for name, p in net.named_parameters():
            p[silent[units.rows[name]]] = 0
        small = slim(net, X, keep)
        assert torch.allclose(small(inputs()), net(inputs()), atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
