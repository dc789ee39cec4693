"""Measure class-incremental accuracy without task ids, with and without stored samples, and the bytes of each row.

    python -m benchmarks.practice.class_incremental --dataset-root DIR --out benchmarks/results/class_split_mnist.json

The streams are ``split-mnist`` (five tasks of two digits, in an order that depends on the seed), ``cifar100`` (ten
tasks of ten classes), ``clinc150`` (ten domains of fifteen intents), and ``cifar100-images``, on which a slim ResNet-18
is trained from scratch. ``cifar100`` and ``clinc150`` use features of frozen encoders, which
`benchmarks.lib.frozen_features` computes. A method of this package is trained once per seed and evaluated with
several inference methods: for every sample on its own and, in another column, for batches of 128 samples of one task.

There are controls: the features of the subnetworks alone, and the same Gaussians as a generative classifier (the
default uses the input alone). One row stores as many samples as the replay methods and calibrates the likelihoods of
the tasks on them. On ``clinc150``, the column ``novelty_auroc`` is the area under the ROC curve when the cost of the
best task is used to separate out-of-scope texts from texts of the ten domains. With ``--validation``, a share of the
training data is used instead of the test data; the settings were chosen in this way.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.lib.command import run_or_draw
from benchmarks.lib.streams import with_validation
from benchmarks.practice.class_incremental.baselines import BASELINES, baseline
from benchmarks.practice.class_incremental.settings import SETTINGS
from benchmarks.practice.class_incremental.streams import benchmark, tensors
from benchmarks.practice.class_incremental.subnetworks import ours


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield all rows, seed by seed."""
    torch.set_num_threads(1)
    setting = SETTINGS[options.stream]
    if options.ways:
        setting = replace(setting, ways={name: setting.ways[name] for name in options.ways.split(";")})
    if options.memory:
        setting = replace(setting, memory=options.memory)
    for seed in map(int, options.seeds.split(",")):
        train, test = setting.load(seed, options.dataset_root)
        if options.validation:
            stream = with_validation(benchmark(train, test), share=options.validation, seed=seed)
            train, test = tensors(stream.train_stream), tensors(stream.test_stream)
        for name in options.rows.split(","):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            if name in setting.ours:
                novel = setting.novel(options.dataset_root) if setting.novel else None
                found = ours(name, setting, train, test, seed, novel=novel)
            else:
                lr = options.lr or setting.lr.get(name, 1e-3)
                found = iter([baseline(name, setting, train, test, lr=lr)])
            for row in found:
                yield {"seed": seed, **row}
                print(f"{seed} {row['method']} {row.get('way', '')}: {row['accuracy']:.4f}", file=sys.stderr)


def main() -> None:
    """Run and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", choices=(*SETTINGS,), default="split-mnist", help="(default %(default)s)")
    parser.add_argument("--rows", default=",".join(("supsup", "exssnet", *BASELINES)), help="(default %(default)s)")
    parser.add_argument("--seeds", default="10,11,12", help="comma-separated (default %(default)s)")
    parser.add_argument("--lr", type=float, help="of Adam for the baselines (default: those of the stream's setting)")
    parser.add_argument("--ways", help="names of ways of inference, with ; between them (default: all of the stream's)")
    parser.add_argument("--memory", type=int, help="stored samples (default: those of the stream's setting)")
    parser.add_argument("--validation", type=float, default=0.0, help="test on this share of the training data instead")
    run_or_draw(parser, "benchmarks.practice.class_incremental", run, None)


if __name__ == "__main__":
    main()
