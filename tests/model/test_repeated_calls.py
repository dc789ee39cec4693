"""Repeated calls take a shorter path with the same outputs, whatever has changed in between."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from avalanche_supermask import MaskedModel
from avalanche_supermask.model.repeated_calls import MISSED
from avalanche_supermask.selection import selection

X = torch.rand(6, 5, generator=torch.Generator().manual_seed(0))


def learn(model: MaskedModel, key: int, label: int) -> None:
    """Add a task whose mask is made from fresh scores."""
    model.train().begin(key, label)
    model.set_scores(model.fresh_scores(key))
    model.learn_scores(selection(model.masked_shapes, density=0.5))
    model.commit()
    model.eval()


def made(*tasks: int) -> MaskedModel:
    """Return a model with these tasks."""
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model = MaskedModel(net, seed=0)
    for task in tasks:
        learn(model, task, task)
    return model


def labels(label: int) -> Tensor:
    """Return one label for all samples."""
    return torch.full((len(X),), label)


def is_short(model: MaskedModel, label: int) -> bool:
    """Return whether a call with this label takes the short path."""
    return model._again(X, labels(label)) is not MISSED


@pytest.mark.parametrize("form", [int, labels])
def test_the_second_call_is_short_and_equal(form: Any) -> None:
    """In every call, the outputs of a task equal those of its export."""
    model = made(0, 1)
    for task in (0, 1):
        expected = model.export(task)(X)
        assert not is_short(model, task)
        assert torch.equal(model(X, form(task)), expected)
        assert is_short(model, task)
        assert torch.equal(model(X, form(task)), expected)


def test_what_learns_answers_itself() -> None:
    """A task that begins with the label of a finished task is used for that label; training has no short path."""
    model = made(0)
    before = model(X, labels(0))
    model.begin(1, 0)
    model.set_scores(model.fresh_scores(5))
    model.learn_scores(selection(model.masked_shapes, density=0.5))
    assert not is_short(model, 0)
    assert not torch.equal(model(X, labels(0)), before)
    model.train()
    assert not is_short(model, 0)
    model.abandon()
    model.eval()
    assert torch.equal(model(X, labels(0)), before)


def test_a_new_task_under_a_forgotten_key_is_seen() -> None:
    """When a task is forgotten, its cached tensors are dropped."""
    model = made(0, 1)
    model(X, labels(1))
    model.forget(1)
    learn(model, 1, 1)
    model.set_scores(model.fresh_scores(9))
    assert torch.equal(model(X, labels(1)), model.export(1)(X))


def test_two_tasks_of_one_label_take_the_long_way_with_its_warning() -> None:
    """The label stands for two tasks."""
    model = made(0)
    model(X, labels(0))
    learn(model, 1, 0)
    with pytest.warns(UserWarning, match="stands for several"):
        out = model(X, labels(0))
    assert torch.equal(out, model.export(1)(X))


def test_an_assigned_task_answers() -> None:
    """The assigned task is used, whatever was called before."""
    model = made(0, 1)
    model(X, labels(0))
    model.router.assigned = 1
    assert torch.equal(model(X, labels(0)), model.export(1)(X))


def test_inference_and_other_executions_are_seen() -> None:
    """A setting that changes after the first call takes effect in the next call."""
    model = made(0, 1)
    model(X, labels(0))
    model.task_inference = "entropy"
    assert not is_short(model, 0)
    model.task_inference = "given"
    model.execution = "sparse"
    assert not is_short(model, 0)


def test_a_replaced_layer_is_called() -> None:
    """The places of the tensors are looked up again if a module was replaced."""
    model = made(0)
    model(X, labels(0))
    expected = model(X, labels(0))
    model.net[2] = nn.Identity()
    assert not torch.equal(model(X, labels(0)), expected)
    model.net[3] = copy.deepcopy(model.net[3])
    model.net[2] = nn.ReLU()
    assert torch.equal(model(X, labels(0)), expected)


def test_the_network_has_its_own_tensors_back_after_an_error() -> None:
    """A short call that fails does not change the network."""
    model = made(0)
    model(X, labels(0))
    own = {name: p for name, p in model.net.named_parameters()}

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    handle = model.net[3].register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError):
        model(X, labels(0))
    handle.remove()
    assert all(p is own[name] for name, p in model.net.named_parameters())
    assert is_short(model, 0)


def test_threads_and_mixed_batches() -> None:
    """Concurrent short calls of two tasks, and mixed batches, have the outputs of single calls."""
    model = made(0, 1)
    expected = [model(X, labels(task)) for task in (0, 1)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: model(X, labels(i % 2)), range(200)))
    assert all(torch.equal(out, expected[i % 2]) for i, out in enumerate(found))
    mixed = torch.arange(len(X)) % 2
    rows = torch.stack([expected[int(task)][i] for i, task in enumerate(mixed)])
    torch.testing.assert_close(model(X, mixed), rows)


def test_copies_and_pickles_answer_for_themselves() -> None:
    """A copy does not call the network of the original."""
    model = made(0)
    model(X, labels(0))
    copied = copy.deepcopy(model)
    learn(copied, 1, 1)
    copied.net[2] = nn.Identity()
    assert torch.equal(model(X, labels(0)), model.export(0)(X))
    assert torch.equal(copied(X, labels(0)), copied.export(0)(X))
    assert not torch.equal(copied(X, labels(0)), model(X, labels(0)))


class Counting(nn.Module):
    """A network whose buffers change in every call, in the ways that networks of strangers use."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.layer, self.way = nn.Linear(5, 2), way
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("scale", torch.full((2,), 3.0))

    def forward(self, x: Tensor) -> Any:
        """Return the logits."""
        if self.way == "in place":
            self.calls += 1
        elif self.way == "by data":
            self.calls.data.add_(1)
        elif self.way == "replaced":
            self.calls = self.calls + 1
        elif self.way == "in a checkpoint":
            return checkpoint(self.count, x, use_reentrant=False)
        out = self.layer(x) * self.scale + self.calls.sum() + len(self.calls)
        if self.way == "longer":
            self.calls.data = torch.cat([self.calls.data, torch.ones(1)])
        elif self.way == "resized":
            self.calls.resize_(3).fill_(1)
        elif self.way == "part of the input":
            self.calls.data = x.detach()[0, :1]
        return (out, self.calls) if self.way == "returned" else out

    def count(self, x: Tensor) -> Tensor:
        """Return the logits, and count the call."""
        self.calls += 1
        return self.layer(x) * self.scale


def counting(way: str) -> MaskedModel:
    """Return a model with one task."""
    model = MaskedModel(Counting(way), seed=0)
    learn(model, 0, 0)
    return model


@pytest.mark.parametrize("way", ["in place", "by data", "replaced", "longer", "resized", "part of the input"])
@pytest.mark.parametrize("grad", [False, True])
def test_buffers_that_a_call_changes_start_anew_in_every_call(way: str, grad: bool) -> None:
    """No call sees what an earlier call did to a buffer, and neither do the stored task and the caller's input."""
    model, x = counting(way), X.clone()
    with torch.set_grad_enabled(grad):
        outputs = [model(x, 0).detach() for _ in range(4)]
        assert is_short(model, 0)
    outputs.append(model(x, 0).detach())
    assert all(torch.equal(out, outputs[0]) for out in outputs)
    assert torch.equal(x, X)
    assert model.tensors_of(0)["calls"].tolist() == [0]
    assert model.net.calls.tolist() == [0]  # type: ignore[operator, union-attr]


def test_a_checkpointed_part_that_runs_again_changes_copies() -> None:
    """The backward pass computes a checkpointed part again, and the stored task keeps its buffers."""
    model, x = counting("in a checkpoint"), X.clone().requires_grad_()
    outputs = [model(x, 0) for _ in range(3)]
    sum(out.sum() for out in outputs).backward()  # type: ignore[union-attr]
    assert x.grad is not None
    assert model.tensors_of(0)["calls"].tolist() == [0]


def test_repeated_calls_can_be_vectorized() -> None:
    """The outputs of a model with buffers of its own have no storage under `torch.func.vmap`."""
    model = counting("never")
    with torch.no_grad():
        expected = [model(X, 0) for _ in range(2)][-1]
        found = torch.func.vmap(lambda x: model(x, 0))(torch.stack([X, X]))
    assert torch.allclose(found[1], expected)


def test_a_buffer_in_an_output_belongs_to_the_caller() -> None:
    """The caller may change what he was given, and no later call changes it."""
    model = counting("returned")
    with torch.no_grad():
        first = model(X, 0)[1]
        second = model(X, 0)[1].add_(5)
        third = model(X, 0)[1]
    assert (first.item(), second.item(), third.item()) == (0, 5, 0)


@pytest.mark.parametrize("way", ["never", "in place"])
def test_gradients_of_an_earlier_output_survive_later_calls(way: str) -> None:
    """The copies of buffers that a short call writes are not those that an earlier output needs."""
    model, x = counting(way), X.clone().requires_grad_()
    with torch.no_grad():
        model(X, 0), model(X, 0)
    outputs = [model(x, 0), model(x, 0)]
    with torch.no_grad():
        model(X, 0)
    for out in outputs:
        out.sum().backward()
    assert x.grad is not None
