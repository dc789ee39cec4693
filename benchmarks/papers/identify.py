"""Measure ImpressLearn's accuracy on RotatedMNIST without task ids, with several inference methods.

    python -m benchmarks.papers.identify --dataset-root DIR --out benchmarks/results/identify.json

The tasks are rotations by 0, 10, 20, ... 90 degrees (or by any angles), learned by LeNet-300-100. Six tasks are the
basis, and four are mixtures of it. All samples of a test batch belong to one task. The compared methods are: the given
id; entropy and expected entropy over the stored combinations; SupSup's one-shot over the combinations and over the
basis alone; and entropy descent on free coefficients. SupSup with one mask per task is measured in the same way.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from avalanche_supermask import CachedTensors, ImpressLearn, SupSup
from avalanche_supermask.data.cached import load_tensors
from avalanche_supermask.inference import Entropy, EntropyDescent, ExpectedEntropy, Inference, OneShot
from benchmarks.lib.command import device_name
from benchmarks.lib.endless import KINDS, Endless
from benchmarks.lib.provenance import write_result

TASKS, BASIS = 10, 6


def learned(method: str, tasks: Endless, options: argparse.Namespace) -> Any:
    """Return the strategy after training on all tasks."""
    common = {
        "density": options.density,
        "mask_lr": 0.02,
        "init": "signed_constant",
        "layer_densities": "uniform",
        "train_epochs": options.epochs,
        "train_mb_size": 128,
        "device": options.device,
        "evaluator": None,
        "plugins": [CachedTensors()],
        "seed": options.seed,
    }
    net = KINDS[options.kind].network()
    if method == "supsup":
        strategy: Any = SupSup(net, **common)
    else:
        strategy = ImpressLearn(net, n_basis=BASIS, coefficient_lr=options.coefficient_lr, **common)
    for task in range(TASKS):
        is_mixture = method != "supsup" and task >= BASIS
        strategy.train_epochs = options.mixture_epochs if is_mixture else options.epochs
        strategy.train(tasks.train(task))
    return strategy


def score(strategy: Any, tasks: Endless, how: str | Inference, *, batch: int, batches: int) -> dict[str, float]:
    """Return the accuracy over all tasks, and the share of samples whose id was correct."""
    model = strategy.model.eval()
    model.task_inference = how
    right = ids = total = 0
    for task in range(TASKS):
        x, y, t = load_tensors(tasks.test(task).dataset, strategy.device)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(task))[: batch * batches].to(y.device)
        for rows in order.split(batch):
            with torch.no_grad():
                right += int((model(x[rows], t[rows]).argmax(dim=1) == y[rows]).sum())
            total += len(rows)
            if model.infers and model.inferred_task is not None:
                ids += int((model.inferred_task == task).sum())
    return {"accuracy": right / total, "task_id_accuracy": ids / total}


def main() -> None:
    """Learn the tasks, evaluate every inference method, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kind",
        choices=("rotated", "rotated-anyhow"),
        default="rotated",
        help="0° to 90°, or any angles (%(default)s)",
    )
    parser.add_argument("--epochs", type=int, default=2, help="of a mask (default %(default)s)")
    parser.add_argument("--mixture-epochs", type=int, default=6, help="of a mixture's (default %(default)s)")
    parser.add_argument("--coefficient-lr", type=float, default=0.05, help="Adam, cosine (default %(default)s)")
    parser.add_argument("--density", type=float, default=0.25, help="of a mask (default %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="samples that decide together (default %(default)s)")
    parser.add_argument("--batches", type=int, default=20, help="asked of each task (default %(default)s)")
    parser.add_argument("--validation", type=float, default=0.0, help="test on this share of the training data instead")
    parser.add_argument("--device", default="cpu", type=device_name, help="cpu or cuda (default cpu)")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated (default %(default)s)")
    parser.add_argument("--dataset-root", type=Path, required=True, help="where torchvision keeps MNIST, or puts it")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks = Endless(options.kind, options.dataset_root, validation=options.validation)
    ways: dict[str, str | Inference] = {
        "id given": "given",
        "entropy": Entropy(per="batch"),
        "expected entropy": ExpectedEntropy(per="batch"),
        "one-shot": OneShot(per="batch"),
    }
    basis_ways: dict[str, Inference] = {
        "one-shot over the basis": OneShot(per="batch", first=BASIS),
        "entropy descent": EntropyDescent(),
    }
    rows = []
    for seed in map(int, options.seeds.split(",")):
        options.seed = seed
        for method in ("impresslearn", "supsup"):
            torch.manual_seed(seed)
            strategy = learned(method, tasks, options)
            for name, how in {**ways, **(basis_ways if method == "impresslearn" else {})}.items():
                found = score(strategy, tasks, how, batch=options.batch, batches=options.batches)
                rows.append({"seed": seed, "method": method, "inference": name, **found})
                print(
                    f"{seed} {method:13} {name:24} {found['accuracy']:.4f}  {found['task_id_accuracy']:.3f}", flush=True
                )
    shown = {
        key: getattr(options, key)
        for key in ("kind", "epochs", "mixture_epochs", "coefficient_lr", "density", "batch", "batches", "validation")
    }
    write_result(options.out, "benchmarks.papers.identify", sys.argv[1:], options=shown, rows=rows)


if __name__ == "__main__":
    main()
