"""Code that the examples share: scikit-learn's digits as five tasks, without a download, and a training loop."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from sklearn.datasets import load_digits
from torch import nn

from avalanche_supermask import CachedTensors

__all__ = ["learn", "network", "permuted", "stream"]


def stream() -> Any:
    """Return five tasks of two digits each (0 and 1, 2 and 3, and so on), with images ``(1, 8, 8)``, labels 0 and 1."""
    images, digits = _images()
    of_task = [digits // 2 == task for task in range(5)]
    return _benchmark([(images[rows], digits[rows] % 2) for rows in of_task])


def permuted(*, seed: int = 0) -> Any:
    """Return five tasks of all ten digits, each with its own permutation of the pixels."""
    images, digits = _images()
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(64, generator=generator) for _ in range(5)]
    return _benchmark([(images.flatten(1)[:, order].reshape(-1, 1, 8, 8), digits) for order in orders])


def network(outputs: int = 2) -> nn.Module:
    """Return a small fully connected network for these tasks."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, outputs)
    )


def learn(method: Any, net: nn.Module, *, description: str | None, epochs: int, **arguments: Any) -> Any:
    """Learn the five tasks with a method and print the accuracies; the script's option ``--epochs`` sets the epochs.

    Args:
        method: a strategy class.
        net: network for the strategy.
        description: description of the script, for ``--help``.
        epochs: number of epochs per task, unless the command line has the option ``--epochs``.
        arguments: arguments of the method.

    Returns:
        The trained strategy.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=epochs, help="a task (default %(default)s)")
    options = parser.parse_args()
    tasks = stream()
    strategy = method(
        net, train_epochs=options.epochs, train_mb_size=32, plugins=[CachedTensors()], seed=0,
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]), **arguments,
    )  # fmt: skip
    for experience in tasks.train_stream:
        strategy.train(experience)
    results = strategy.eval(tasks.test_stream)
    accuracies = [value for name, value in results.items() if name.startswith("Top1_Acc_Exp/")]
    print("accuracy of each task:", *map("{:.3f}".format, accuracies))
    return strategy


def _images() -> tuple[torch.Tensor, torch.Tensor]:
    images, digits = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(digits)


def _benchmark(tasks: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """Make a benchmark in which every fourth image is test data."""
    test = [(x[::4], y[::4]) for x, y in tasks]
    kept = [torch.arange(len(y)) % 4 > 0 for _, y in tasks]
    train = [(x[rows], y[rows]) for (x, y), rows in zip(tasks, kept, strict=True)]
    return tensors_benchmark(train_tensors=train, test_tensors=test, task_labels=list(range(len(tasks))))
