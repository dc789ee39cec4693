"""Measure which learning rate of the scores shallow and deep networks need: accuracies of SupSup at its defaults.

    python -m benchmarks.practice.depth --dataset-root DIR --out benchmarks/results/depth.json
    python -m benchmarks.practice.depth --rule --dataset-root DIR --out benchmarks/results/depth_rule.json

A share is `SCORES` in `avalanche_supermask.learning_rates`, the rate relative to the spread of the scores. The rule's
factor for the number of layers is off. All networks learn the same data, two tasks of five classes of CIFAR-100, in the
same number of steps. With ``--rule``, the rule is as it is, and SupSup is compared with ExSSNeT. Accuracy is the mean
over the tasks, on held-out training data. No test data are used.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from avalanche_supermask import ExSSNeT, SupSup, learning_rates
from benchmarks.lib.image_data import load_cifar100, uint8_pixels
from benchmarks.lib.networks import SlimResNet18
from benchmarks.lib.provenance import write_result
from benchmarks.practice.defaults import Case, Part, accuracy

SHARES = (0.1, 0.05, 0.025)


def load_images(root: Path | None) -> tuple[Part, Part]:
    """Return CIFAR-100's training images, with pixels from 0 to 1. The test part is empty."""
    (pixels, y), _ = load_cifar100(root)
    x = uint8_pixels(pixels).float() / 255
    return (x, y), (x[:0], y[:0])


def convolutions(width: int, layers: int) -> nn.Module:
    """Return a plain network of convolutions with BatchNorm, halved in size after the first and the middle one."""
    found: list[nn.Module] = []
    for layer in range(layers - 1):
        found += [nn.Conv2d(width if layer else 3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        found += [nn.MaxPool2d(2)] if layer in (0, layers // 2) else []
    return nn.Sequential(*found, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, 5))


NETWORKS = {
    "3 layers": partial(convolutions, 24, 3),
    "slim ResNet-18 of width 10, 21 layers": partial(SlimResNet18, 5, width=10, bfloat16=False),
    "12 layers": partial(convolutions, 16, 12),
}


def case_of(network: Callable[[], nn.Module]) -> Case:
    """Return the stream with a network."""
    return Case(load_images, None, 2, 2000, network, 64, 4, classes=5)


def compare(options: argparse.Namespace) -> None:
    """Run SupSup and ExSSNeT on every network; the result file is written after each network."""
    rows: dict[str, dict[str, list[float]]] = {}
    for name, network in NETWORKS.items():
        rows[name] = {
            method.__name__: [
                accuracy(method, case_of(network), int(seed), options.dataset_root) for seed in options.seeds.split(",")
            ]
            for method in (SupSup, ExSSNeT)
        }
        print(name, {method: round(statistics.fmean(each), 4) for method, each in rows[name].items()}, flush=True)
        write_result(options.out, "benchmarks.practice.depth", sys.argv[1:], rows=rows)


def main() -> None:
    """Run every share on every network; the result file is written after each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="2000,2001,2002", help="(default %(default)s)")
    parser.add_argument("--dataset-root", type=Path, help="where torchvision keeps CIFAR-100, or puts it")
    parser.add_argument("--rule", action="store_true", help="compare SupSup and ExSSNeT, with the rule as it is")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.rule:
        compare(options)
        return
    learning_rates.LAYERS = sys.maxsize
    seeds = [int(seed) for seed in options.seeds.split(",")]
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name, network in NETWORKS.items():
        case = case_of(network)
        found = {}
        for share in SHARES:
            learning_rates.SCORES = share
            each = [accuracy(SupSup, case, seed, options.dataset_root) for seed in seeds]
            error = statistics.stdev(each) / math.sqrt(len(each)) if len(each) > 1 else math.nan
            found[f"{share:g}"] = {"accuracy": statistics.fmean(each), "standard_error": error}
            print(name, share, round(found[f"{share:g}"]["accuracy"], 4), flush=True)
        rows[name] = found
        write_result(options.out, "benchmarks.practice.depth", sys.argv[1:], rows=rows)


if __name__ == "__main__":
    main()
