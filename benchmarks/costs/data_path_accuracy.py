"""Compare the accuracies of training with the in-memory data path and with Avalanche's loaders on SplitMNIST.

    python -m benchmarks.costs.data_path_accuracy --dataset-root DIR --out benchmarks/results/data_path_accuracy.json

The stream is Avalanche's own SplitMNIST, with five tasks of two digits. LeNet-300-100 is trained for one epoch per task
by Naive, Replay and SupSup, each with and without `CachedTensors`. The two paths shuffle with different generators, so
a pair of runs differs like two seeds. Therefore the script prints the mean difference with its standard error.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks import SplitMNIST
from avalanche.training.plugins import ReplayPlugin
from avalanche.training.supervised import Naive
from torch.optim import SGD

from avalanche_supermask import CachedTensors, SupSup
from benchmarks.lib.accuracy import accuracy
from benchmarks.lib.networks import MultiHead, mlp
from benchmarks.lib.provenance import write_result

METHODS = ("naive", "replay", "supsup")
WAYS = ("in memory", "Avalanche's loaders")


def build(method: str, path: list[Any], *, seed: int) -> Any:
    """Return the strategy of a method, with the plugins of a data path."""
    net = mlp(784, (300, 100), 2)
    common: dict[str, Any] = {"train_mb_size": 128, "evaluator": None}
    if method == "supsup":
        as_then = {"init": "signed_constant", "layer_densities": "uniform"}  # defaults at that commit
        return SupSup(net, density=0.1, mask_lr=0.02, plugins=path, seed=seed, **as_then, **common)
    heads = MultiHead(net)
    optimizer = SGD(heads.parameters(), lr=0.01, momentum=0.9)
    memory = [ReplayPlugin(200)] if method == "replay" else []
    return Naive(model=heads, optimizer=optimizer, plugins=[*path, *memory], **common)


def learn(method: str, stream: Any, *, seed: int, in_memory: bool) -> float:
    """Train on the stream and return the mean accuracy over all tasks after the last task."""
    torch.manual_seed(seed)
    strategy = build(method, [CachedTensors()] if in_memory else [], seed=seed)
    for experience in stream.train_stream:
        strategy.train(experience)
    return statistics.fmean(accuracy(strategy.model, experience) for experience in stream.test_stream)


def main() -> None:
    """Train with both data paths for every method and seed; the result file is written after each pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4", help="comma-separated (default %(default)s)")
    parser.add_argument("--dataset-root", type=Path, required=True, help="where torchvision keeps MNIST, or puts it")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)  # raised by Avalanche's replay plugin
    rows: list[dict[str, Any]] = []
    for method in METHODS:
        differences = []
        for seed in map(int, options.seeds.split(",")):
            stream = SplitMNIST(
                5, return_task_id=True, class_ids_from_zero_in_each_exp=True, seed=seed,
                dataset_root=options.dataset_root,
            )  # fmt: skip
            found = {way: learn(method, stream, seed=seed, in_memory=way == "in memory") for way in WAYS}
            differences.append(found["in memory"] - found["Avalanche's loaders"])
            rows.append({"method": method, "seed": seed, **found})
            write_result(options.out, "benchmarks.costs.data_path_accuracy", sys.argv[1:], rows=rows)
        error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
        print(f"{method:8} difference {statistics.fmean(differences):+.4f} ± {error:.4f}", flush=True)


if __name__ == "__main__":
    main()
