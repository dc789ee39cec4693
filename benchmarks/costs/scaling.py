"""Measure the costs of many tasks: a mixed batch, learning one more task, one-shot inference, and the import.

    python -m benchmarks.costs.scaling --out benchmarks/results/scaling.json

The network is LeNet-300-100. Four calls are measured:

- a batch of 128 samples of 8 finished tasks, against 8 dense forward passes of 16 samples;
- ``SupSup.train()`` on 50 batches of 128 after K tasks, against the same in a fresh model;
- the one-shot inference of the task of a batch, against a forward and a backward pass of the dense network plus one
  read of all packed bits;
- ``import avalanche_supermask.bits.packed_masks`` against ``import torch``, each in a fresh process.

The two calls of a pair alternate; a ratio is the median of the pairwise ratios after a warm-up.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from avalanche.benchmarks import tensors_benchmark
from torch import nn

from avalanche_supermask import CachedTensors, MaskedModel, SupSup
from avalanche_supermask.inference import OneShot
from avalanche_supermask.model.superposition import Superposition
from avalanche_supermask.selection import selection
from benchmarks.costs.speed import WARM_UP, ratio
from benchmarks.lib.networks import mlp
from benchmarks.lib.provenance import write_result

SHARING, EACH = 8, 16
BATCHES, BATCH = 50, 128
LATER = 10**6  # the first task label for further tasks; no finished task has it


def network() -> nn.Module:
    """Return a LeNet-300-100."""
    return mlp(784, (300, 100), 10)


def learned(tasks: int) -> MaskedModel:
    """Return a model with finished tasks, whose masks are made from random scores."""
    model = MaskedModel(network(), seed=0)
    select = selection(model.masked_shapes, density=0.1)
    for task in range(tasks):
        model.begin(task, task)
        model.set_scores(model.fresh_scores(task))
        model.learn_scores(select)
        model.commit()
    return model.eval()


def mixed_batch(repeats: int) -> float:
    """Return the ratio of a batch of mixed tasks to one dense pass per task of the batch."""
    model, dense = learned(SHARING), network().eval()
    x = torch.rand(SHARING * EACH, 1, 28, 28)
    labels = torch.arange(SHARING * EACH) % SHARING

    @torch.no_grad()
    def ours() -> None:
        model(x, labels)

    @torch.no_grad()
    def theirs() -> None:
        for part in x.split(EACH):
            dense(part)

    return ratio(ours, theirs, repeats)


def one_shot(model: MaskedModel, tasks: int, repeats: int, *, first: bool = False) -> float:
    """Return the ratio of one-shot inference to a lower bound: the network's passes and one read of the bits.

    Args:
        model: a model with finished tasks.
        tasks: number of finished tasks.
        repeats: number of pairs of calls.
        first: whether to measure the first batch, for which the superposition is computed (default False); later
            batches reuse it.
    """
    dense = network().eval()
    x = torch.rand(SHARING * EACH, 1, 28, 28)
    bits = torch.randint(0, 2**62, (-(-tasks * sum(w.numel() for w in model.subnetworks.frozen.values()) // 64),))
    find, kept = OneShot(per="batch"), Superposition(model)

    def ours() -> None:
        find(Superposition(model) if first else kept, tasks, x)

    def floor() -> None:
        dense.zero_grad()
        dense(x).logsumexp(dim=1).mean().backward()
        bits.sum()

    return ratio(ours, floor, repeats)


def one_more(model: MaskedModel, repeats: int) -> float:
    """Return the ratio of learning a task in this model to learning one in a fresh model."""
    x, y = torch.rand(BATCHES * BATCH, 1, 28, 28), torch.randint(0, 10, (BATCHES * BATCH,))
    calls = repeats + WARM_UP

    def learning(model: MaskedModel) -> Callable[[], None]:
        strategy = SupSup(model, density=0.1, train_mb_size=BATCH, evaluator=None, plugins=[CachedTensors()])
        labels = list(range(LATER, LATER + calls))
        stream = iter(
            tensors_benchmark(
                train_tensors=[(x, y)] * calls, test_tensors=[(x[:1], y[:1])] * calls, task_labels=labels
            ).train_stream
        )

        def call() -> None:
            strategy.train(next(stream))

        return call

    return ratio(learning(model), learning(MaskedModel(network(), seed=0)), repeats)


def imports(repeats: int) -> float:
    """Return the ratio of a process that imports the packed masks to one that imports only torch."""

    def importing(name: str) -> Callable[[], None]:
        def call() -> None:
            subprocess.run([sys.executable, "-c", f"import {name}"], check=True)

        return call

    return ratio(importing("avalanche_supermask.bits.packed_masks"), importing("torch"), repeats)


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="10,100,1000,2500", help="numbers of tasks (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=30, help="pairs a ratio (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling.json"), help="result file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {"mixed batch": mixed_batch(options.repeats), "import": imports(options.repeats)}
    for tasks in map(int, options.tasks.split(",")):
        model = learned(tasks)
        found[f"one-shot, {tasks} tasks"] = one_shot(model, tasks, options.repeats)
        found[f"the first batch, {tasks} tasks"] = one_shot(model, tasks, options.repeats, first=True)
        found[f"one more after {tasks} tasks"] = one_more(model, options.repeats)
    for name, value in found.items():
        print(f"{name:26} {value:.2f}", flush=True)
    write_result(options.out, "benchmarks.costs.scaling", sys.argv[1:], ratios=found)


if __name__ == "__main__":
    main()
