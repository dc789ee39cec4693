"""`check_method` passes for a method that keeps the contract, and its error names the broken part."""

import pytest
import torch

from avalanche_supermask import MaskedModel, Phase, SubnetworkPlugin, SubnetworkStrategy, Threshold, methods
from avalanche_supermask.testing import check_method, contract

ARGUMENTS = {"clnp": {"margin": 0.05, "l1": 1e-3}, "impresslearn": {"n_basis": 2}}


@pytest.mark.parametrize("name", methods())
def test_every_registered_method_keeps_the_contract(name):
    check_method(methods()[name], **ARGUMENTS.get(name, {}))


class Plugin(SubnetworkPlugin):
    def phases(self, epochs):
        return [Phase("mask", epochs)]

    def enter_phase(self, phase, model):
        model.learn_scores(Threshold())


class Sound(SubnetworkStrategy):
    plugin = Plugin

    def __init__(self, model, *, optimizer=None, **arguments):
        method = self.plugin()
        super().__init__(model=model, method=method, optimizer=optimizer, default_lr=1e-2, **arguments)


def broken(change):
    """Return a method that changes its model when a task is committed."""

    class Broken(Sound):
        class plugin(Plugin):  # noqa: N801
            def task_committed(self, strategy, model: MaskedModel, key):
                change(model, key)

    return Broken


def test_a_new_method_of_six_lines_keeps_it():
    check_method(Sound, tasks=3)


@torch.no_grad()
def overwrite(model, key):
    if key:
        next(iter(model.subnetworks.frozen.values())).add_(1.0)


def grow(model, key):
    model.register_parameter(f"extra{key}", torch.nn.Parameter(torch.zeros(3)))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (overwrite, "finished tasks stay bit-identical: mlp, default': outputs of finished tasks moved"),
        (grow, "what learns does not grow with the number of tasks': numbers in parameters"),
    ],
)
def test_a_broken_method_is_told_what_it_breaks(change, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_method(broken(change), tasks=2)


def test_a_control_that_does_not_forget_fails():
    class Control(Sound):
        forgets = True

    with pytest.raises(AssertionError, match="a control must change old tasks"):
        check_method(Control, tasks=2)


def test_checks_run_one_by_one():
    names = [name for name, _ in contract(Sound)]
    assert len(names) == len(set(names)) > 15
