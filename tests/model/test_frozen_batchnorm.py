import torch
from torch import nn

from avalanche_supermask.model.frozen_batchnorm import FrozenChannels
from avalanche_supermask.model.network_call import hooked


def build():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    claimed = torch.tensor([True, False, True, False])
    return net, FrozenChannels(claimed, torch.randn(4), torch.rand(4) + 0.5)


def test_claimed_channels_use_their_own_statistics_in_training_too():
    net, layer = build()
    x = torch.randn(8, 1, 6, 6)
    with hooked(net, {"1": layer}):
        out = net(x)
    hidden, norm = net[0](x), net[1]
    fixed = (hidden - layer.mean[:, None, None]) / (layer.var[:, None, None] + norm.eps).sqrt()
    assert torch.allclose(out[:, [0, 2]], fixed.relu()[:, [0, 2]], atol=1e-6)
    batch = (hidden - hidden.mean((0, 2, 3))[:, None, None]) / (
        hidden.var((0, 2, 3), unbiased=False)[:, None, None] + norm.eps
    ).sqrt()
    assert torch.allclose(out[:, [1, 3]], batch.relu()[:, [1, 3]], atol=1e-5)


def test_autocast_changes_the_precision_only():
    net, layer = build()
    x = torch.randn(8, 1, 6, 6)
    with hooked(net, {"1": layer}):
        exact = net(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = net(x)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), exact, atol=0.1)


def test_nothing_is_left_behind():
    net, layer = build()
    with hooked(net, {"1": layer}):
        net(torch.randn(2, 1, 6, 6))
    assert not any(module._forward_hooks for module in net.modules())


def test_restore_writes_claimed_entries_only():
    _, layer = build()
    mean, var = torch.zeros(4), torch.ones(4)
    layer.restore(mean, var)
    assert torch.equal(mean, torch.where(layer.claimed, layer.mean, torch.zeros(4)))
    assert torch.equal(var, torch.where(layer.claimed, layer.var, torch.ones(4)))
