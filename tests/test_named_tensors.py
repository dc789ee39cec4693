import copy
import pickle

import pytest
import torch
from torch import nn

from avalanche_supermask.named_tensors import NamedTensors


@pytest.mark.parametrize("trainable", [False, True])
def test_it_is_a_dictionary_and_a_module(trainable):
    tensors = NamedTensors({"a.b": torch.ones(2)}, trainable=trainable)
    tensors["c"] = torch.zeros(3)
    assert list(tensors) == ["a.b", "c"]
    assert tensors.nbytes == 20
    assert len(list(tensors.parameters())) == (2 if trainable else 0)
    assert tensors.double()["c"].dtype == torch.float64
    del tensors["c"]
    assert "c" not in tensors
    with pytest.raises(KeyError):
        tensors["c"]


@pytest.mark.parametrize("trainable", [False, True])
def test_a_state_loads_into_an_empty_one_and_replaces_what_is_there(trainable):
    full = NamedTensors({"x.y": torch.arange(3.0), "z": torch.ones(1)}, trainable=trainable)
    for start in ({}, {"old": torch.ones(5)}, {"x.y": torch.ones(7)}):
        other = NamedTensors(start, trainable=trainable)
        other.load_state_dict(full.state_dict())
        assert list(sorted(other)) == ["x.y", "z"]
        assert torch.equal(other["x.y"], full["x.y"])


def test_it_nests_copies_and_pickles():
    module = nn.ModuleDict({"inner": NamedTensors({"a.b": torch.ones(2)})})
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other["inner"]["a.b"], torch.ones(2))
        assert other["inner"]["a.b"].data_ptr() != module["inner"]["a.b"].data_ptr()
    assert list(module.state_dict()) == ["inner.a/b"]


@pytest.mark.parametrize("name", ["a.b", "fc/1.weight", "a%2Fb", "a./b", "a/.b", "%25", "100%/x.y"])
def test_any_name_comes_back(name):
    tensors = NamedTensors({name: torch.ones(1)})
    assert list(tensors) == [name]
    other = NamedTensors()
    other.load_state_dict(tensors.state_dict())
    assert list(other) == [name]
    assert "." not in next(iter(tensors.state_dict()))
