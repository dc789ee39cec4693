"""Networks that cannot be wrapped are refused with an error of one line that names what to pass instead."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from avalanche_supermask import MaskedModel, SupSup
from tests.streams import class_stream, inputs, mlp, outputs, train_all


def pruned(net):
    prune.l1_unstructured(net[1], "weight", 0.5)
    return net


def with_history(net):
    net[1].scale = net[1].weight.mean()
    return net


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (nn.DataParallel, TypeError, r"the network is wrapped in DataParallel.*SupSup\(net\.module\)"),
        (
            lambda net: nn.Sequential(nn.DataParallel(net)),
            TypeError,
            r"module '0' is wrapped in .*\('0'\)\.module, in its",
        ),
        (torch.jit.script, TypeError, "the network is TorchScript .*pass it unscripted"),
        (lambda net: nn.Sequential(torch.jit.script(net)), TypeError, "module '0' is TorchScript"),
        (pruned, ValueError, r"module '1' is pruned.*prune\.remove\(module, 'weight'\)"),
        (lambda net: net.append(nn.LazyLinear(2)), ValueError, r"module '6' \(LazyLinear\).*call the network once"),
        (with_history, ValueError, r"module '1' \(Linear\) holds a tensor with a history, 'scale'.*detach"),
        (
            lambda net: nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(36, 2))),
            ValueError,
            r"module '1' has the old .*utils\.weight_norm.*use torch\.nn\.utils\.parametrizations\.weight_norm",
        ),
        (
            lambda net: nn.Sequential(nn.Flatten(), nn.utils.spectral_norm(nn.Linear(36, 2))),
            ValueError,
            r"use torch\.nn\.utils\.parametrizations\.spectral_norm",
        ),
        (lambda net: net.state_dict(), TypeError, "expected a torch.nn.Module to wrap; got OrderedDict; load it into"),
    ],
)
def test_what_is_refused(make, error, said):
    with pytest.raises(error, match=said) as caught:
        SupSup(make(mlp()), evaluator=None)
    assert "\n" not in str(caught.value)


class DistributedDataParallel(nn.Module):  # It has the name of PyTorch's class but is another class.
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


def test_a_class_of_the_users_own_may_be_called_as_it_likes():
    assert MaskedModel(DistributedDataParallel(mlp())).masked_names


def test_distributed_and_sharded_modules_are_known_by_their_bases(monkeypatch):
    monkeypatch.setattr(DistributedDataParallel, "__module__", "torch.nn.parallel.distributed")
    with pytest.raises(TypeError, match=r"wrapped in DistributedDataParallel.*SupSup\(net\.module\)"):
        MaskedModel(DistributedDataParallel(mlp()))
    sharded = type("FSDPLinear", (type("FSDPModule", (), {"__module__": "torch.distributed.fsdp"}), nn.Linear), {})
    with pytest.raises(TypeError, match=r"module '1' is sharded \(FSDPModule\)"):
        MaskedModel(nn.Sequential(nn.Flatten(), sharded(36, 2)))


def test_what_was_refused_can_be_passed_as_it_is_told():
    net = pruned(mlp())
    prune.remove(net[1], "weight")
    model = train_all(SupSup(net, init="keep", density=1.0, evaluator=None), class_stream(1)).model
    assert (model.effective_weights(0)["1.weight"] == 0).float().mean() == pytest.approx(0.5, abs=0.01)
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(2))
    lazy(inputs(2))
    assert outputs(train_all(SupSup(lazy, evaluator=None), class_stream(1)).model, inputs(), 0).shape == (16, 2)
    assert MaskedModel(nn.DataParallel(mlp()).module).masked_names
    net = nn.Sequential(nn.DataParallel(mlp()))
    net[0] = net.get_submodule("0").module
    assert MaskedModel(net).masked_names
    for new in (nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm):
        net = nn.Sequential(nn.Flatten(), new(nn.Linear(36, 2)))
        assert train_all(SupSup(net, evaluator=None), class_stream(1)).model.task_keys == [0]


def test_networks_without_values_or_made_for_inference_only_are_refused():
    with pytest.raises(ValueError, match=r"module '1' \(Linear\) has a weight without values, 'weight'.*to_empty"):
        SupSup(mlp().to("meta"), evaluator=None)
    with torch.inference_mode():
        net = mlp()
        with pytest.raises(RuntimeError, match=r"made under torch\.inference_mode\(\) could never be trained"):
            SupSup(net, evaluator=None)
    with pytest.raises(ValueError, match=r"module '1' \(Linear\) was made under torch\.inference_mode\(\)"):
        SupSup(net, evaluator=None)
