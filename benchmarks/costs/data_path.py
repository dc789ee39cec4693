"""Measure the cost of Avalanche's loop and loaders: the time of one ``train()``, as a ratio to a bare loop.

    python -m benchmarks.costs.data_path --out benchmarks/results/data_path.json

LeNet-300-100 is trained on MNIST-shaped tensors with batches of 128 and SGD for five epochs, with accuracy and loss
metrics. The loops alternate in one process; a ratio is the median over rounds. The bare loop of replay adds a batch
from a memory of 1,000 samples to every batch.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from avalanche.training.supervised import Naive
from torch import Tensor, nn
from torch.optim import SGD

from avalanche_supermask import CachedTensors
from benchmarks.lib.networks import mlp
from benchmarks.lib.provenance import write_result

BATCH, EPOCHS = 128, 5


def network() -> nn.Module:
    """Return a LeNet-300-100."""
    return mlp(784, (300, 100), 10)


def bare(x: Tensor, y: Tensor, memory: tuple[Tensor, Tensor] | None = None) -> Callable[[], None]:
    """Return a training loop in plain PyTorch; with a memory, it adds a batch of the memory to every batch."""
    net = network()
    optimizer = SGD(net.parameters(), lr=0.01)

    def train() -> None:
        for rows in (rows for _ in range(EPOCHS) for rows in torch.randperm(len(x)).split(BATCH)):
            inputs, labels = x[rows], y[rows]
            if memory is not None:
                chosen = torch.randperm(len(memory[0]))[:BATCH]
                inputs, labels = torch.cat([inputs, memory[0][chosen]]), torch.cat([labels, memory[1][chosen]])
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs), labels).backward()
            optimizer.step()

    return train


def avalanche(experiences: list[Any], *plugins: Any) -> Callable[[], None]:
    """Return a call of Avalanche's ``train()`` on the last experience, after training on the others."""
    net = network()
    evaluator = EvaluationPlugin(
        accuracy_metrics(minibatch=True, epoch=True), loss_metrics(minibatch=True, epoch=True), loggers=[]
    )
    strategy = Naive(
        model=net,
        optimizer=SGD(net.parameters(), lr=0.01),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=BATCH,
        train_epochs=EPOCHS,
        evaluator=evaluator,
        plugins=list(plugins),
    )
    for experience in experiences[:-1]:
        strategy.train(experience)
    return lambda: strategy.train(experiences[-1])


def ratios(loops: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Return the median ratio of each loop to the loop named ``bare``; the first round is a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(repeats + 1):
        for name, loop in loops.items():
            started = time.perf_counter()
            loop()
            seconds[name].append(time.perf_counter() - started)
    pairs = {name: zip(times[1:], seconds["bare"][1:], strict=True) for name, times in seconds.items()}
    return {name: statistics.median(a / b for a, b in pair) for name, pair in pairs.items() if name != "bare"}


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=6_400, help="of an experience (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=30, help="rounds (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/data_path.json"), help="result file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore", DeprecationWarning)  # raised by Avalanche's replay plugin
    data = [(torch.rand(options.samples, 1, 28, 28), torch.randint(0, 10, (options.samples,))) for _ in range(2)]
    stream = tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=[0, 0])
    experiences = list(stream.train_stream)
    rows = {
        "naive": ratios(
            {
                "bare": bare(*data[1]),
                "in memory": avalanche(experiences, CachedTensors()),
                "Avalanche's loaders": avalanche(experiences),
            },
            options.repeats,
        ),
        "replay": ratios(
            {
                "bare": bare(*data[1], memory=(data[0][0][:1000], data[0][1][:1000])),
                "in memory": avalanche(experiences, CachedTensors(), ReplayPlugin(1000)),
                "Avalanche's loaders": avalanche(experiences, ReplayPlugin(1000)),
            },
            options.repeats,
        ),
    }
    for name, found in rows.items():
        print(f"{name:8}", "  ".join(f"{key} {value:.2f}" for key, value in found.items()), flush=True)
    write_result(options.out, "benchmarks.costs.data_path", sys.argv[1:], **{"ratios to a bare loop": rows})


if __name__ == "__main__":
    main()
