"""Measure HopSupSup on SplitMNIST: accuracy with masks recovered from unlabelled inputs, and size of the memory.

    python -m benchmarks.papers.hopsupsup --dataset-root DIR --out benchmarks/results/hopsupsup.json

The setting is that of the published code: five tasks of two digits in their natural order, ten shared outputs, a
network 784-2048-2048-10 without biases, one epoch with batches of 128, and recovery from 32 batches of 64. There are no
task labels at test.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_supermask import CachedTensors, HopSupSup
from benchmarks.lib.command import device_name
from benchmarks.lib.provenance import write_result
from benchmarks.lib.streams import build_stream


def network(width: int = 2048) -> nn.Module:
    """Return the network of the paper: norm layers with batch statistics, Swish, no biases."""
    norm = partial(nn.BatchNorm1d, affine=False, track_running_stats=False)
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in in (784, width):
        layers += [nn.Linear(fan_in, width, bias=False), norm(width), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10, bias=False))


def run(seed: int, root: Path, *, width: int, device: str) -> dict[str, Any]:
    """Learn the five tasks, and evaluate each without its id."""
    torch.manual_seed(seed)
    stream = build_stream("split-mnist-class-ordered", seed=seed, dataset_root=root)
    strategy = HopSupSup(
        network(width),
        train_mb_size=128,
        eval_mb_size=64,
        train_epochs=1,
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True)),
        plugins=[CachedTensors()],
        device=device,
        seed=seed,
    )
    for experience in stream.train_stream:
        strategy.train(experience)
    torch.manual_seed(seed)
    metrics = strategy.eval(stream.test_stream)
    found = [v for k, v in sorted(metrics.items()) if k.startswith("Top1_Acc_Exp/eval_phase/")]
    return {
        "seed": seed,
        "accuracy": statistics.fmean(found),
        "by_task": found,
        "hopfield_bytes": strategy.model.memory_bytes,
        "plain_mask_bytes_a_task": strategy.model.mask_bytes,
    }


def main() -> None:
    """Run all seeds; the result file is written after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated (default %(default)s)")
    parser.add_argument("--width", type=int, default=2048, help="of both hidden layers (default: the paper's 2048)")
    parser.add_argument("--device", default="cpu", type=device_name, help="cpu or cuda (default cpu)")
    parser.add_argument("--dataset-root", type=Path, required=True, help="where torchvision keeps MNIST, or puts it")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in map(int, options.seeds.split(",")):
        rows.append(run(seed, options.dataset_root, width=options.width, device=options.device))
        print(rows[-1], flush=True)
        write_result(options.out, "benchmarks.papers.hopsupsup", sys.argv[1:], rows=rows)


if __name__ == "__main__":
    main()
