"""Measure the accuracy of ImpressLearn's mixtures of n masks on tasks on which no mask was trained.

    python -m benchmarks.papers.impressions --kind rotated --sizes 6 --dataset-root DIR --out benchmarks/results/X.json

The coefficients of unseen tasks are fitted for each size n and each kind of basis: masks of the first n tasks, n masks
of the first task, and n random masks. The network is LeNet-300-100 on MNIST and a slim ResNet-18 on CIFAR-100. For
every size, the unseen tasks are those after the largest size. The masks are learned once and shared by all sizes.
``--plot`` draws a result file.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from avalanche_supermask import CachedTensors, ImpressLearn, MaskedModel, SupSup
from avalanche_supermask.selection import selection
from benchmarks.lib.accuracy import accuracy
from benchmarks.lib.command import device_name, run_or_draw
from benchmarks.lib.endless import KINDS, Endless

BASES = ("heterogeneous", "homogeneous", "random")
Mask = dict[str, Tensor]


def basis(kind: str, n: int, tasks: Endless, options: argparse.Namespace) -> list[Mask]:
    """Return n masks over the weights that are drawn with ``options.seed``."""
    model = MaskedModel(KINDS[options.kind].network(), seed=options.seed)
    if kind == "random":
        select = selection(model.masked_shapes, density=options.density)
        return [{name: select.mask(name, s) for name, s in model.fresh_scores(i).items()} for i in range(n)]
    strategy = SupSup(
        model,
        density=options.density,
        mask_lr=options.mask_lr,
        layer_densities="uniform",
        train_epochs=options.mask_epochs,
        train_mb_size=options.batch,
        device=options.device,
        evaluator=None,
        plugins=[CachedTensors()],
    )
    for i in range(n):
        strategy.train(tasks.train(i if kind == "heterogeneous" else 0, label=i))
    return [strategy.model.task_mask(i) for i in range(n)]


def with_basis(masks: list[Mask], options: argparse.Namespace) -> ImpressLearn:
    """Return a strategy whose tasks are all mixtures of the given masks."""
    model = MaskedModel(KINDS[options.kind].network(), seed=options.seed)
    for mask in masks:
        model.subnetworks.add_to_basis(mask)
    return ImpressLearn(
        model,
        n_basis=len(masks),
        basis="random",
        coefficient_lr=options.coefficient_lr,
        penalty=options.penalty,
        train_epochs=options.epochs,
        train_mb_size=options.batch,
        device=options.device,
        evaluator=None,
        plugins=[CachedTensors()],
    )


def sweep(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one row per kind of basis and size."""
    tasks = Endless(options.kind, options.dataset_root, validation=options.validation)
    sizes = [int(n) for n in options.sizes.split(",")]
    unseen = range(max(sizes), max(sizes) + options.unseen)
    for kind in options.bases.split(","):
        started = time.perf_counter()
        masks = basis(kind, max(sizes), tasks, options)
        basis_seconds = time.perf_counter() - started
        for n in sizes:
            strategy = with_basis(masks[:n], options)
            found = []
            started = time.perf_counter()
            for task in unseen:
                train, test = tasks(task)
                strategy.train(train)
                found.append(accuracy(strategy.model, test))
            row = {
                "basis": kind,
                "n": n,
                "accuracy": statistics.fmean(found),
                "by_task": dict(zip(unseen, found, strict=True)),
                "coefficients": strategy.model.bytes_per_task(private=False)[unseen[0]] // 4,
                "seconds_a_task": (time.perf_counter() - started) / len(unseen),
                "basis_seconds": basis_seconds,
            }
            print(f"{kind:14} n = {n:3}  {row['accuracy']:.4f}  {found}", flush=True)
            yield row


def plot(result: dict[str, Any], picture: Path) -> None:
    """Draw the accuracy on unseen tasks over the number of masks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
    for kind in dict.fromkeys(row["basis"] for row in result["rows"]):
        mine = [row for row in result["rows"] if row["basis"] == kind]
        axes.plot([row["n"] for row in mine], [row["accuracy"] for row in mine], marker="o", label=kind)
    axes.set(xlabel="masks in the basis", ylabel="accuracy on unseen tasks", ylim=(0, 1), xscale="log")
    sizes = sorted({row["n"] for row in result["rows"]})
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()
    axes.set_title(result["options"]["kind"], fontsize=10)
    axes.legend()
    figure.savefig(picture, dpi=120)


def main() -> None:
    """Run all settings, or draw a result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, default="rotated", help="stream (default %(default)s)")
    parser.add_argument("--sizes", default="6", help="numbers of masks, comma-separated (default %(default)s)")
    parser.add_argument("--bases", default=",".join(BASES), help="kinds of basis (default all)")
    parser.add_argument("--unseen", type=int, default=2, help="unseen tasks (default %(default)s)")
    parser.add_argument("--density", type=float, default=0.25, help="of the masks (default %(default)s)")
    parser.add_argument("--mask-epochs", type=int, default=1, help="for each mask (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="for the coefficients of a task (default %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="samples (default %(default)s)")
    parser.add_argument("--penalty", type=float, default=0.0, help="on the coefficients' norm (default %(default)s)")
    parser.add_argument("--mask-lr", type=float, default=0.02, help="Adam, cosine (default %(default)s)")
    parser.add_argument("--coefficient-lr", type=float, default=0.02, help="Adam, cosine (default %(default)s)")
    parser.add_argument("--validation", type=float, default=0.0, help="test on this share of the training data instead")
    parser.add_argument("--device", default="cpu", type=device_name, help="cpu or cuda (default cpu)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (default %(default)s)")
    run_or_draw(parser, "benchmarks.papers.impressions", sweep, plot)


if __name__ == "__main__":
    main()
