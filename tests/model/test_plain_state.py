"""State in plain attributes, which tasks share, is reported once; buffers and stored activations are not."""

import warnings

import pytest
import torch
from torch import nn

from avalanche_supermask.model.plain_state import changed_state, plain_state
from tests.building import build
from tests.streams import class_stream, inputs, outputs, train_all


class Centred(nn.Module):
    """A norm of one's own; ``keep`` says where the running mean is stored."""

    def __init__(self, keep):
        super().__init__()
        if keep == "buffer":
            self.register_buffer("mean", torch.zeros(36))
        else:
            self.mean = torch.zeros(36) if keep == "tensor" else 0.0
        self.keep, self.seen = keep, None

    def forward(self, x):
        x = x.flatten(1)
        self.seen = x.detach()  # a stored activation
        if self.training:
            now = x.detach().mean(0)
            self.mean = 0.9 * self.mean + 0.1 * (float(now.mean()) if self.keep == "number" else now)
        return x - self.mean


def net(keep):
    return nn.Sequential(Centred(keep), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 2))


@pytest.mark.parametrize("keep", ["tensor", "number"])
@pytest.mark.parametrize("method", ["supsup", "sparse_finetuning", "clnp"])
def test_plain_attributes_that_forward_changes_are_reported_once(keep, method):
    strategy, stream = build(method, net(keep)), class_stream(2)
    with pytest.warns(UserWarning, match=r"changes the plain attributes '0\.mean', .*register_buffer\(\)"):
        strategy.train(stream.train_stream[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        strategy.train(stream.train_stream[1])


def test_buffers_and_stored_activations_are_not_reported_and_each_task_has_its_own():
    recorded = []
    strategy = build("exssnet", net("buffer"))
    strategy.eval(class_stream(1).test_stream)  # an activation is stored before the first training step
    train_all(strategy, class_stream(2), lambda task: recorded.append(outputs(strategy.model, inputs(), task)))
    assert torch.equal(outputs(strategy.model, inputs(), 0), recorded[0])


def test_what_counts_as_changed():
    module = nn.Module()
    module.same, module.number, module.tensor = 1, 1.5, torch.zeros(2)
    module.another_shape, module.of_samples, module.loss = torch.zeros(2), torch.zeros(4), torch.zeros(())
    module.flag = False
    before = plain_state(module)
    module.number, module.tensor[0], module.another_shape, module.flag = 2.5, 1.0, torch.ones(3), True
    module.of_samples, module.loss = torch.ones(4), torch.ones((), requires_grad=True) * 2
    assert changed_state(module, before, samples=4) == ["number", "tensor"]
