"""Strategies and models for many test modules: every method on small networks, and tasks without training."""

import inspect

import torch
from torch.optim import SGD, Adam, AdamW

from avalanche_supermask import methods
from avalanche_supermask.selection import selection
from avalanche_supermask.strategy import ModelArguments, StrategyArguments
from tests.streams import NETWORKS as ORDINARY
from tests.streams import Stranger

METHODS = methods()
NETWORKS = {**ORDINARY, "stranger": Stranger}
OPTIMIZERS = {
    "sgd": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adam": lambda p: Adam(p, lr=0.01, weight_decay=1e-3),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
}


def build(method, net, *, optimizer=None, plugins=(), **arguments):
    """Return a strategy that trains quickly, with those of the arguments that the method takes."""
    settings = {"train_epochs": 2, "train_mb_size": 16, "eval_mb_size": 16, "evaluator": None, "seed": 0}
    taken = inspect.signature(METHODS[method].__init__).parameters
    density = 0.05 if method == "sparse_finetuning" else 0.3  # These tasks share no entries, so few fit at 0.3.
    options = {"density": density, "margin": 0.05, "l1": 1e-3, "n_basis": 2, "weight_epochs": 1, **arguments}
    settings.update({k: v for k, v in options.items() if k in taken or k in StrategyArguments.__annotations__})
    settings.update({k: v for k, v in options.items() if k in ModelArguments.__annotations__})
    make = OPTIMIZERS.get(optimizer, optimizer)
    made = None if make is None else make(net.parameters())
    return METHODS[method](net, optimizer=made, plugins=list(plugins), **settings)


def networks_of(method):
    """Return the names of the networks that the method supports; it refuses others with an error."""
    return [n for n in NETWORKS if METHODS[method].any_module or n not in ("transformer", "lstm", "stranger")]


PAIRS = [(method, network) for method in METHODS for network in networks_of(method)]


def same_state(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


def learn_nothing(model, key, density=0.3, label="same"):
    """Commit a task with the mask of its fresh scores."""
    model.begin(key, key if label == "same" else label)
    model.subnetworks.set_scores(model.fresh_scores(key))
    model.learn_scores(selection(model.masked_shapes, density=density))
    model.commit()
    return model
