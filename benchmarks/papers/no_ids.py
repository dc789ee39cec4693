"""Measure SupSup without any task ids (NNs): how many hidden permutations it finds, and its accuracy.

    python -m benchmarks.papers.no_ids --tasks 10 --dataset-root DIR --out benchmarks/results/nns10.json

PermutedMNIST is one long stream without ids or boundaries, and the network is LeNet-300-100 with superfluous output
neurons. At test, the first image of a batch of 128 selects the mask for the batch. The comparison is GNs: the same
network, trained with task ids.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from avalanche_supermask import CachedTensors, MaskedModel, SupSup, SupSupNNs
from avalanche_supermask.data.cached import load_tensors
from avalanche_supermask.inference import OneShot
from benchmarks.lib.command import device_name
from benchmarks.lib.endless import Endless
from benchmarks.lib.networks import mlp
from benchmarks.lib.provenance import write_result

BATCH = 128


@torch.no_grad()
def accuracy(model: MaskedModel, tasks: Endless, n_tasks: int) -> float:
    """Return the mean accuracy of the tasks; the first image of each batch selects the mask for the batch."""
    model.eval()
    device = next(model.parameters()).device
    found = []
    for task in range(n_tasks):
        x, y, _ = load_tensors(tasks.test(task).dataset, device)
        model.task_inference = OneShot()
        model(x[::BATCH])
        model.task_inference = "given"
        assert model.inferred_task is not None
        answers = [
            model.forward_task(int(k), part) for k, part in zip(model.inferred_task, x.split(BATCH), strict=True)
        ]
        found.append(float((torch.cat(answers).argmax(dim=1) == y).float().mean()))
    return statistics.fmean(found)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Learn the stream with and without ids, and return the results."""
    tasks = Endless("permuted", options.dataset_root, validation=options.validation)
    common: dict[str, Any] = {
        "density": options.density,
        "layer_densities": options.layer_densities,
        "mask_lr": options.mask_lr,
        "init": "signed_constant",
        "train_mb_size": BATCH,
        "device": options.device,
        "evaluator": None,
        "seed": options.seed,
    }
    torch.manual_seed(options.seed)
    blind = SupSupNNs(
        mlp(784, (300, 100), options.outputs), plugins=[CachedTensors()], check_every=options.check_every, **common
    )
    told = SupSup(mlp(784, (300, 100), options.outputs), plugins=[CachedTensors()], **common)
    draw = torch.Generator().manual_seed(options.seed)
    begins = []
    for task in tqdm(range(options.tasks), unit="task"):
        passes = -(-options.batches * BATCH // tasks.samples)
        order = torch.cat([torch.randperm(tasks.samples, generator=draw) for _ in range(passes)])
        rows = order[: options.batches * BATCH]
        begins.append(task * options.batches)
        blind.train(tasks.train(task, label=0, rows=rows))
        told.train(tasks.train(task, rows=rows))
    blind.finish()
    looks = blind.method.looks
    opened = [b.batch for a, b in zip([None, *looks], looks, strict=False) if a is None or a.task != b.task]
    return {
        "tasks": options.tasks,
        "found": len(blind.found_tasks),
        "begins": begins,
        "opened": opened,
        "accuracy_nns": accuracy(blind.model, tasks, options.tasks),
        "accuracy_gns": accuracy(told.model, tasks, options.tasks),
    }


def main() -> None:
    """Run and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=10, help="hidden permutations (default %(default)s)")
    parser.add_argument("--batches", type=int, default=1000, help="of 128, for each (default: the paper's 1000)")
    parser.add_argument(
        "--outputs", type=int, default=200, help="output neurons, ten of them real (default %(default)s)"
    )
    parser.add_argument("--check-every", type=int, default=100, help="batches between looks (default: the paper's 100)")
    parser.add_argument("--density", type=float, default=0.15, help="of a mask (default %(default)s)")
    parser.add_argument("--layer-densities", choices=("uniform", "erdos_renyi"), default="erdos_renyi", help="(ER)")
    parser.add_argument("--mask-lr", type=float, default=0.02, help="Adam (default %(default)s)")
    parser.add_argument("--validation", type=float, default=0.0, help="test on this share of the training data instead")
    parser.add_argument("--device", default="cpu", type=device_name, help="cpu or cuda (default cpu)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    parser.add_argument("--dataset-root", type=Path, required=True, help="where torchvision keeps MNIST, or puts it")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = run(options)
    print({key: value for key, value in found.items() if key not in ("begins", "opened")})
    shown = {k: v for k, v in vars(options).items() if k not in ("dataset_root", "out")}
    write_result(options.out, "benchmarks.papers.no_ids", sys.argv[1:], options=shown, **found)


if __name__ == "__main__":
    main()
