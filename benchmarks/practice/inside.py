"""Measure masks inside a pretrained encoder: SupSup and ImpressLearn on CLINC150's domains.

    python -m benchmarks.practice.inside --dataset-root DIR --out benchmarks/results/inside.json

The network is the encoder (``DIR/encoder``, see `benchmarks.lib.text`) with the mean of its tokens and an output layer
per task. The weights of the encoder are kept. Attention and feed-forward weights are masked, and embeddings are frozen.
LayerNorm is frozen and shared; with ``--norm`` each task has its own. A class has 40 training and 20 test texts. The
row ``frozen`` trains the output layer alone. For comparison, each row has the bytes of an adapter per task: LoRA of
rank 8 on queries and values, including an output layer.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from avalanche.training.supervised import Naive
from torch import nn
from torch.optim import Adam
from tqdm import tqdm

from avalanche_supermask import CachedTensors, ImpressLearn, SupSup
from avalanche_supermask.text import EncoderClassifier
from benchmarks.lib.accuracy import accuracy
from benchmarks.lib.command import device_name, run_or_draw
from benchmarks.lib.networks import MultiHead
from benchmarks.lib.streams import with_validation
from benchmarks.lib.text import clinc150, encoder

CLASSES = 15


def strategy_of(row: str, options: argparse.Namespace) -> Any:
    """Return the strategy of a row."""
    net = EncoderClassifier(encoder(options.dataset_root), CLASSES)
    common: dict[str, Any] = {
        "train_epochs": options.epochs, "train_mb_size": 32, "eval_mb_size": 256, "evaluator": None,
        "plugins": [CachedTensors()], "device": options.device,
    }  # fmt: skip
    if row == "frozen":
        net.encoder.requires_grad_(False)
        heads = MultiHead(net)
        return Naive(
            model=heads, optimizer=Adam(heads.parameters(), lr=1e-2), criterion=nn.CrossEntropyLoss(), **common
        )
    common |= {
        "init": "keep", "scores": "magnitude", "density": options.density, "mask_lr": options.mask_lr,
        "per_task": "norm" if options.norm else "none", "exclude": [r".*embeddings\..*", r".*pooler\..*"],
        "own": [r"fc\..*"], "seed": options.seed,
    }  # fmt: skip
    if row == "supsup":
        return SupSup(net, **common)
    return ImpressLearn(net, n_basis=options.n_basis, coefficient_lr=options.coefficient_lr, **common)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one row per method: accuracies of every task at the end, forgetting, and bytes."""
    stream = clinc150(0, options.dataset_root, max_per_class=(40, 20))
    if options.validation:
        stream = with_validation(stream, share=options.validation, seed=0)
    for row in options.rows.split(","):
        torch.manual_seed(options.seed)
        strategy = strategy_of(row, options)
        started, after = time.process_time(), []
        for task in tqdm(range(options.tasks), desc=row, unit="task"):
            strategy.train(stream.train_stream[task])
            after.append(accuracy(strategy.model, stream.test_stream[task]))
        last = [accuracy(strategy.model, stream.test_stream[task]) for task in range(options.tasks)]
        masked = row != "frozen"
        net = strategy.model.net if masked else strategy.model
        yield {
            "row": row,
            "accuracy": statistics.fmean(last),
            "accuracies": last,
            "forgetting": statistics.fmean(a - b for a, b in zip(after, last, strict=True)),
            "bytes_by_task": list(strategy.model.bytes_per_task().values()) if masked else None,
            "selection_bytes": list(strategy.model.bytes_per_task(private=False).values()) if masked else None,
            "lora_rank8_bytes": lora_bytes(net, rank=8),
            "cpu_seconds": time.process_time() - started,
        }


def lora_bytes(net: nn.Module, *, rank: int) -> int:
    """Return the bytes of LoRA on all query and value matrices, and of an output layer."""
    adapted = [p.shape for name, p in net.named_parameters() if re.search(r"(query|value)\.weight$", name)]
    width = adapted[0][1]
    return 4 * (sum(rank * (rows + columns) for rows, columns in adapted) + (width + 1) * CLASSES)


def main() -> None:
    """Run and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="frozen,supsup,impresslearn", help="comma-separated (default %(default)s)")
    parser.add_argument("--tasks", type=int, default=10, help="domains (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="a task (default %(default)s)")
    parser.add_argument("--density", type=float, default=0.8, help="of the masks (default %(default)s)")
    parser.add_argument("--mask-lr", type=float, default=2e-3, help="Adam, cosine (default %(default)s)")
    parser.add_argument("--coefficient-lr", type=float, default=1e-2, help="Adam, cosine (default %(default)s)")
    parser.add_argument("--n-basis", type=int, default=5, help="of ImpressLearn (default %(default)s)")
    parser.add_argument("--norm", action="store_true", help="LayerNorm is each task's own")
    parser.add_argument("--validation", type=float, default=0.0, help="test on this share of the training data instead")
    parser.add_argument("--device", default="cpu", type=device_name, help="cpu or cuda (default cpu)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    run_or_draw(parser, "benchmarks.practice.inside", run, None)


if __name__ == "__main__":
    main()
