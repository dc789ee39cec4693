"""Wrong values of arguments are refused when an object is created, in one line that names the argument."""

import contextlib
import inspect
import typing

import numpy as np
import pytest
import torch
from avalanche.logging import TextLogger
from avalanche.training.plugins import LwFPlugin
from torch import nn

import avalanche_supermask
from avalanche_supermask import CLNP, ImpressLearn, MaskedModel, SparseFineTuning, SupSup, SupSupPlugin, methods
from avalanche_supermask.checked_arguments import Count, Share, checked
from avalanche_supermask.strategy import AllArguments

METHODS = methods()
PLUGINS = [cls for name, cls in vars(avalanche_supermask).items() if name.endswith("Plugin") and hasattr(cls, "phases")]


class Odd:
    def __repr__(self):
        return "Odd()"


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def arguments(cls):
    """Return the names of all arguments of a strategy, except the network and its optimizer."""
    named = set(inspect.signature(cls.__init__).parameters) - {"self", "model", "optimizer", "arguments", "method"}
    return sorted(named | set(typing.get_type_hints(AllArguments)) if issubclass(cls, SupSup) else named)


@pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS)
def test_nonsense_is_refused_for_every_argument_in_one_line_that_names_it(cls):
    for name in arguments(cls):
        for wrong in (Odd(), float("nan"), {"a": 1}):
            with pytest.raises((TypeError, ValueError)) as refused:
                cls(net(), **{"evaluator": None, name: wrong})
            assert name in str(refused.value), (name, wrong)
            assert "\n" not in str(refused.value), (name, wrong)


@pytest.mark.parametrize(
    ("cls", "given", "error", "message"),
    [
        (
            SupSup,
            dict(density=10),
            ValueError,
            r"density must be a fraction in \(0, 1\], 'auto' or None; got 10$",
        ),
        (SupSup, dict(density=True), TypeError, "^density must be .*; got True$"),
        (SupSup, dict(mask_lr=-0.1), ValueError, "^mask_lr must be a number of at least 0 or None; got -0.1$"),
        (
            SupSup,
            dict(block=16),
            TypeError,
            "^block must be a pair of positive whole numbers or None; got 16$",
        ),
        (
            SupSup,
            dict(train_epochs=0),
            ValueError,
            "^train_epochs must be a whole number of at least 1; got 0$",
        ),
        (SupSup, dict(train_epochs=5.0), TypeError, "^train_epochs must be a whole number .*; got 5.0$"),
        (SupSup, dict(exclude="0.weight"), TypeError, r"a list of strings; got '0.weight'; pass exclude=\["),
        (SupSup, dict(schedule=""), ValueError, "^schedule must be 'constant', 'cosine' or None; got ''$"),
        (
            SupSup,
            dict(evaluator=[TextLogger()]),
            TypeError,
            "^evaluator must be an EvaluationPlugin, a",
        ),
        (SupSup, dict(criterion=nn.MSELoss), TypeError, "^criterion .*; got the class MSELoss"),
        (SupSup, dict(peval_mode="batch"), ValueError, "^peval_mode must be 'epoch', 'iteration' or 'exp"),
        (SupSup, dict(device=None), ValueError, "^device must be 'cpu', 'cuda'.*; got None"),
        (
            SupSup,
            dict(outside="base", values=3),
            TypeError,
            "a Module, a dictionary or None; got 3",
        ),
        (CLNP, dict(l1_search=0.1), TypeError, "^l1_search must be a list of numbers; got 0.1"),
        (SparseFineTuning, dict(choose="change"), ValueError, "expected train_epochs of 2 or more, got 1"),
        (
            MaskedModel,
            dict(per_task="some"),
            ValueError,
            "'none', 'norm' or 'all'; got 'some'",
        ),
    ],
)
def test_the_message_says_what_was_expected(cls, given, error, message):
    with pytest.raises(error, match=message):
        cls(net(), **given)


def test_a_long_value_is_shortened_to_one_line():
    with pytest.raises(TypeError) as refused:
        SupSup(net(), density=torch.rand(40, 40), evaluator=None)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 140


def test_numbers_of_any_numeric_type_fit():
    assert SupSup(net(), density=np.float32(0.5), train_epochs=np.int64(2), evaluator=None).train_epochs == 2
    assert CLNP(net(), l1_search=np.array([0.1, 0.2]), train_epochs=1, evaluator=None).method.l1_search == (0.1, 0.2)


@pytest.mark.parametrize(
    ("plugins", "message"),
    [
        (LwFPlugin(), r"^plugins must be a list or None; got .*; pass plugins=\[.*LwFPlugin"),
        ([LwFPlugin], r"got the class LwFPlugin: an object, as in LwFPlugin\(...\)"),
        ([[LwFPlugin()]], "got a list: put its items into the list plugins itself"),
        (["lwf"], "got a str: leave it out"),
        ([TextLogger()], r"got a TextLogger: it is a logger, which belongs into evaluator=EvaluationPlugin"),
        ((plugin for plugin in [LwFPlugin()]), "plugins must be a list or None; got <generator"),
    ],
)
def test_plugins_that_avalanche_would_ignore_are_refused(plugins, message):
    with pytest.raises(TypeError, match=message):
        SupSup(net(), plugins=plugins, evaluator=None)


def test_a_scheduler_in_place_of_its_plugin_is_refused():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with pytest.raises(TypeError, match="got a StepLR: wrap it in Avalanche's LRSchedulerPlugin"):
        SupSup(model, optimizer=optimizer, plugins=[scheduler], evaluator=None)


@pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS)
def test_entropy_descent_is_for_methods_that_learn_mixtures(cls):
    refuses = (
        contextlib.nullcontext()
        if issubclass(cls, ImpressLearn)
        else pytest.raises(ValueError, match="learns none: use")
    )
    with refuses:
        cls(net(), task_inference="entropy_descent", evaluator=None)


def test_arguments_without_a_checkable_annotation_are_taken_as_they_are():
    class Method:
        @checked
        def __init__(self, *, density: Share = 0.1, times: "list[Count] | None" = None, other: typing.Any = None):
            self.taken = (density, times, other)

    assert Method(density=0.5, times=[0], other=Odd).taken == (0.5, [0], Odd)
    assert SupSupPlugin(density=None).density is None
