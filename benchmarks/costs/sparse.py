"""Measure evaluations of finished tasks with sparse weights, as ratios to the time of the dense network.

    python -m benchmarks.costs.sparse evaluation --out benchmarks/results/sparse.json
    python -m benchmarks.costs.sparse training --threads 1 --out benchmarks/results/sparse_training.json
    python -m benchmarks.costs.sparse figure benchmarks/results/sparse.json --out docs/sparse.png
    python -m benchmarks.costs.sparse auto --out benchmarks/results/sparse_auto.json

Calls alternate in one process; a ratio is the median of the pairwise ratios, after a warm-up. Masks are made from fresh
scores, because the choice of the kept weights does not affect the time.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.training.supervised import Naive
from torch import Tensor, nn

from avalanche_supermask import CachedTensors, ExSSNeT, MaskedModel
from avalanche_supermask.model.sparse_kernels import kernels
from avalanche_supermask.selection import selection
from avalanche_supermask.strategy import fused_adam
from benchmarks.lib.assorted_networks import LARGE, LARGE_SHAPE, SMALL, SMALL_SHAPE
from benchmarks.lib.networks import SlimResNet18, mlp
from benchmarks.lib.provenance import write_result

DENSITIES = (0.1, 0.05, 0.02)
WARM_UP = 3  # pairs that are not counted

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP 784-2000-2000-10, batch 128": (lambda: mlp(784, (2000, 2000), 10), (128, 784)),
    "LeNet-300-100, batch 128": (lambda: mlp(784, (300, 100), 10), (128, 784)),
    "feed-forward block 384-1536-384, 32 x 64": (
        lambda: nn.Sequential(nn.Linear(384, 1536), nn.GELU(), nn.Linear(1536, 384)), (32, 64, 384)
    ),
    "slim ResNet-18, batch 64": (lambda: SlimResNet18(10), (64, 3, 32, 32)),
}  # fmt: skip


def seconds(call: Callable[[], object]) -> float:
    """Return the time of one call, in seconds."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def ratios(calls: Sequence[Callable[[], object]], dense: Callable[[], object], repeats: int) -> list[float]:
    """Return the median of the pairwise ratios of each call to the dense one; the calls take turns."""
    found: list[list[float]] = [[] for _ in calls]
    for pair in range(WARM_UP + repeats):
        base = seconds(dense)
        for place, call in enumerate(calls):
            took = seconds(call)
            if pair >= WARM_UP:
                found[place].append(took / base)
    return [statistics.median(values) for values in found]


def finished(net: nn.Module, density: float, tasks: int = 1) -> MaskedModel:
    """Return a model with finished tasks, whose masks are made from fresh scores."""
    model = MaskedModel(net, seed=0)
    for key in range(tasks):
        model.begin(key, key)
        model.subnetworks.set_scores(model.fresh_scores(key))
        model.learn_scores(selection(model.masked_shapes, density=density))
        model.commit()
    return model.eval()


def evaluations(model: MaskedModel, x: Tensor, wanted: str) -> Callable[[], object]:
    """Return a function that evaluates the first task with an execution."""
    other = model
    other.execution = wanted  # type: ignore[assignment]

    @torch.no_grad()
    def call() -> object:
        return other(x, 0)

    call()
    return call


@torch.no_grad()
def by_density(name: str, *, repeats: int) -> dict[str, dict[str, float]]:
    """Return the ratios of one network to the dense one, with both executions, at every density."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    x, dense = torch.randn(shape), make().eval()
    found: dict[str, dict[str, float]] = {"sparse": {}, "auto": {}}
    for density in DENSITIES:
        model = finished(make(), density)
        calls = [
            evaluations(each, x, wanted) for each, wanted in zip((model, copy.deepcopy(model)), found, strict=True)
        ]
        for wanted, ratio in zip(found, ratios(calls, lambda: dense(x), repeats), strict=True):
            found[wanted][f"{density:g}"] = ratio
    return found


@torch.no_grad()
def never_slower(make: Callable[[], nn.Module], shape: tuple[int, ...], batch: int, *, repeats: int) -> float:
    """Return the ratio of ``"auto"`` to ``"dense"`` at density 0.1, each measured on its own model."""
    torch.manual_seed(0)
    net = make()
    x = torch.rand(batch, *shape)
    auto = evaluations(finished(net, 0.1), x, "auto")
    dense = evaluations(finished(net, 0.1), x, "dense")
    return ratios([auto], dense, repeats)[0]


@torch.no_grad()
def of_all_tasks(*, repeats: int, tasks: int = 10) -> float:
    """Return the ratio of entropy inference over ten tasks, at density 0.1, to as many dense passes."""
    make, shape = NETWORKS["MLP 784-2000-2000-10, batch 128"]
    torch.manual_seed(0)
    x, dense = torch.randn(shape), make().eval()
    model = finished(make(), 0.1, tasks)
    model.execution, model.task_inference = "sparse", "entropy"
    model._recent.max_bytes = 2**30  # All tasks' weights are kept, as those of the dense network are.
    return ratios([lambda: model(x)], lambda: [dense(x) for _ in range(tasks)], repeats)[0]


def training(density: float, *, repeats: int, batches: int = 20) -> dict[str, float]:
    """Return the times of trainings of the wide MLP as ratios to Avalanche's `Naive` with as many epochs.

    Each training is one call of ``strategy.train`` on one task with batches of 128, from its first step to the commit.
    ``"weight phase"`` trains weights in every epoch, ``"mask and weights"`` in the last half of four epochs.

    Args:
        density: share of the weights that the mask keeps.
        repeats: number of pairs.
        batches: number of batches per epoch.
    """
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn((128 * batches, 784), generator=generator), torch.arange(128 * batches) % 10
    task = tensors_benchmark(train_tensors=[(x, y)], test_tensors=[(x[:10], y[:10])], task_labels=[0]).train_stream[0]

    def ours(execution: str, mask_epochs: int, weight_epochs: int) -> Callable[[], Callable[[], object]]:
        def make() -> Callable[[], object]:
            strategy = ExSSNeT(
                mlp(784, (2000, 2000), 10), density=density, layer_densities="uniform", weight_epochs=weight_epochs,
                train_epochs=mask_epochs + weight_epochs, seed=0, **common(),
            )  # fmt: skip
            strategy.model.execution = execution
            return lambda: strategy.train(task)

        return make

    def dense(epochs: int) -> Callable[[], Callable[[], object]]:
        def make() -> Callable[[], object]:
            net = mlp(784, (2000, 2000), 10)
            strategy = Naive(
                model=net, optimizer=fused_adam(net.parameters(), 1e-3), criterion=nn.CrossEntropyLoss(),
                train_epochs=epochs, **common(),
            )  # fmt: skip
            return lambda: strategy.train(task)

        return make

    def common() -> dict[str, Any]:
        return {"train_mb_size": 128, "evaluator": None, "plugins": [CachedTensors()]}

    found = {}
    for name, mask_epochs, weight_epochs in (("weight phase", 0, 2), ("mask and weights", 2, 2)):
        makes = {execution: ours(execution, mask_epochs, weight_epochs) for execution in ("auto", "dense")}
        reference = dense(mask_epochs + weight_epochs)
        times: dict[str, list[float]] = {execution: [] for execution in makes}
        for pair in range(1 + repeats):  # the first one is not counted: numba compiles its loops
            base = seconds(reference())
            for execution, make in makes.items():
                took = seconds(make())
                if pair:
                    times[execution].append(took / base)
        found |= {f"{name}, {execution}": statistics.median(values) for execution, values in times.items()}
    return found


def figure(rows: dict[str, dict[str, dict[str, dict[str, float]]]], path: Path) -> None:
    """Draw the time over the density; the time of the dense network is 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    largest = max(
        ratio
        for networks in rows.values()
        for executions in networks.values()
        for ratio in executions["sparse"].values()
    )
    top = max(1.1, 1.05 * largest)
    drawing, axes = plt.subplots(1, len(rows), figsize=(9, 3.4), sharey=True, squeeze=False)
    for axis, (threads, networks) in zip(axes[0], rows.items(), strict=True):
        for name, executions in networks.items():
            points = executions["sparse"]
            axis.plot([float(d) for d in points], list(points.values()), marker="o", label=name)
        axis.axhline(1.0, color="black", linewidth=1, linestyle="--")
        axis.set_title(threads)
        axis.set_xlabel("density: share of weights kept")
        axis.set_ylim(0, top)
    axes[0][0].set_ylabel("time of a forward pass (dense = 1)")
    axes[0][-1].legend(fontsize=6, loc="lower right")
    drawing.tight_layout()
    drawing.savefig(path, dpi=120)


def main() -> None:
    """Measure and write a result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "part", choices=["evaluation", "auto", "training", "figure"], help='"auto" measures networks of many kinds'
    )
    parser.add_argument("results", type=Path, nargs="*", help="of the figure: files of evaluations, later ones count")
    parser.add_argument("--networks", default="", help="only those whose name has this word")
    parser.add_argument("--repeats", type=int, default=30, help="pairs a ratio (default 30)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="CPU threads (default 1 2)")
    parser.add_argument("--out", type=Path, required=True, help="result file, or the figure's PNG")
    options = parser.parse_args()
    if options.part == "figure":
        merged: dict[str, Any] = {}
        for path in options.results:
            for threads, networks in json.loads(path.read_text()).get("evaluation, ratios to dense", {}).items():
                merged.setdefault(threads, {}).update(networks)
        figure(merged, options.out)
        return
    content: dict[str, Any] = {"kernels": kernels()}
    if options.part == "training":
        torch.set_num_threads(options.threads[0])
        ratios_of_training: dict[str, dict[str, float]] = {}
        content["training, ratios to dense"] = ratios_of_training
        for density in DENSITIES:
            ratios_of_training[f"{density:g}"] = training(density, repeats=options.repeats)
            print(density, ratios_of_training[f"{density:g}"], flush=True)
            write_result(options.out, "benchmarks.costs.sparse", sys.argv[1:], **content)
        return
    if options.part == "auto":
        torch.set_num_threads(options.threads[0])
        content["auto over dense, density 0.1"] = matrix(options.repeats)
    else:
        rows: dict[str, Any] = {}
        for threads in options.threads:
            torch.set_num_threads(threads)
            row = rows[f"{threads} thread{'s' * (threads > 1)}"] = {}
            for name in (name for name in NETWORKS if options.networks in name):
                row[name] = by_density(name, repeats=options.repeats)
                print(threads, name, row[name], flush=True)
                content["evaluation, ratios to dense"] = rows
                write_result(options.out, "benchmarks.costs.sparse", sys.argv[1:], **content)
        torch.set_num_threads(options.threads[0])
        content["ten tasks tried, ratio to ten dense passes"] = of_all_tasks(repeats=options.repeats)
    write_result(options.out, "benchmarks.costs.sparse", sys.argv[1:], **content)


def matrix(repeats: int) -> dict[str, float]:
    """Return the result of `never_slower` for every network of `assorted_networks`, with batches of 1, 16 and 128."""
    found = {}
    for networks, shape in ((SMALL, SMALL_SHAPE), (LARGE, LARGE_SHAPE)):
        for name, make in networks.items():
            for batch in (1, 16, 128):
                found[f"{name}, batch {batch}"] = never_slower(make, shape, batch, repeats=repeats)
                print(name, batch, round(found[f"{name}, batch {batch}"], 3), flush=True)
    return found


if __name__ == "__main__":
    main()
