"""Another default number type of PyTorch, and models on the meta device."""

import copy

import pytest
import torch
from torch import nn

from avalanche_supermask import MaskedModel, SupSup, SupSupNNs
from tests.building import learn_nothing
from tests.streams import class_stream, inputs, mlp


@pytest.fixture
def double_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def learned():
    model = MaskedModel(mlp(), seed=0)
    for key in range(3):
        learn_nothing(model, key)
    return model.eval()


@pytest.mark.parametrize("way", ["entropy", "oneshot", "binary", "max_logit"])
def test_inference_does_not_depend_on_the_default_type(way):
    model, x = learned(), inputs(12)
    model.task_inference = way
    model(x)
    expected = model.inferred_task
    torch.set_default_dtype(torch.float64)
    try:
        again = copy.deepcopy(model)
        again(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(again.inferred_task, expected)


def test_tasks_begin_with_the_same_scores_under_every_default_type(double_by_default):
    double = MaskedModel(mlp().float(), seed=0).fresh_scores(2)
    torch.set_default_dtype(torch.float32)
    single = MaskedModel(mlp(), seed=0).fresh_scores(2)
    assert all(torch.equal(double[name], scores) for name, scores in single.items())


@pytest.mark.parametrize("method", [SupSup, SupSupNNs])
def test_training_of_a_single_precision_network(method, double_by_default):
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 2)).float()
    options = {"check_every": 1} if method is SupSupNNs else {"task_inference": "oneshot"}
    strategy = method(net, train_mb_size=16, evaluator=None, seed=0, **options)
    torch.set_default_dtype(torch.float32)
    stream = class_stream(2)  # float32, as data usually are
    torch.set_default_dtype(torch.float64)
    for experience in stream.train_stream:
        strategy.train(experience)
    strategy.eval(stream.test_stream)
    assert {p.dtype for p in strategy.model.parameters()} == {torch.float32}


def test_a_model_on_the_meta_device_has_shapes_and_takes_a_state():
    model, x = learned(), inputs(4)
    state, expected = copy.deepcopy(model.state_dict()), model(x, 1)
    empty = copy.deepcopy(model).to("meta")
    out = empty(x.to("meta"), 1)
    assert (out.device.type, out.shape) == ("meta", expected.shape)
    empty.load_state_dict(state, assign=True)
    assert torch.equal(empty(x, 1), expected)
