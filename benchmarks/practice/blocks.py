"""Measure the accuracy of masks of whole blocks on one permutation of MNIST with LeNet-300-100.

    python -m benchmarks.practice.blocks --dataset-root DIR --out benchmarks/results/blocks.json

SupSup leaves the weights at their random values. ExSSNeT trains the weights in the mask in the second half of the
epochs.
These numbers are not used to choose settings: every block and density is reported on the test data, with its seeds.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import sys
from functools import partial
from pathlib import Path

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin

from avalanche_supermask import CachedTensors, ExSSNeT, SupSup
from benchmarks.lib.networks import mlp
from benchmarks.lib.provenance import write_result
from benchmarks.lib.streams import build_stream

BLOCKS = (None, (4, 4), (16, 16))


def accuracy(
    method: str, density: float, block: tuple[int, int] | None, seed: int, *, epochs: int, root: Path
) -> float:
    """Train on the first task and return its test accuracy."""
    stream = build_stream("permuted-mnist", seed=seed, dataset_root=root)
    torch.manual_seed(seed)
    make = SupSup if method == "SupSup" else partial(ExSSNeT, weight_epochs=epochs // 2)
    strategy = make(
        mlp(784, (300, 100), 10), density=density, block=block, train_epochs=epochs, train_mb_size=128,
        eval_mb_size=1000, plugins=[CachedTensors()], seed=seed,
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]),
    )  # fmt: skip
    strategy.train(stream.train_stream[0])
    (found,) = strategy.eval(stream.test_stream[:1]).values()
    del strategy, stream
    gc.collect()  # strategy and evaluator refer to each other, and the tensors of a stream take gigabytes
    return float(found)


def main() -> None:
    """Train with all settings and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-root", type=Path, required=True, help="folder of torchvision's MNIST")
    parser.add_argument("--densities", type=float, nargs="+", default=[0.1, 0.05], help="default 0.1 0.05")
    parser.add_argument("--seeds", type=int, default=3, help="default 3")
    parser.add_argument("--epochs", type=int, default=2, help="default 2")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, dict[str, dict[str, list[float]]]] = {}
    for method, density, block in itertools.product(("SupSup", "ExSSNeT"), options.densities, BLOCKS):
        name = "single weights" if block is None else f"{block[0]} x {block[1]}"
        found = rows.setdefault(method, {}).setdefault(f"{density:g}", {})[name] = [
            accuracy(method, density, block, seed, epochs=options.epochs, root=options.dataset_root)
            for seed in range(options.seeds)
        ]
        print(method, density, name, round(statistics.mean(found), 4), [round(a, 4) for a in found], flush=True)
        write_result(
            options.out, "benchmarks.practice.blocks", sys.argv[1:], epochs=options.epochs, **{"accuracy": rows}
        )


if __name__ == "__main__":
    main()
