"""Measure SupSup without task ids at test (GNu): the task of a batch of 128 is inferred from one of its images.

    python -m benchmarks.papers.unknown_ids --tasks 250 --dataset-root DIR --out benchmarks/results/gnu250.json

The stream is PermutedMNIST, or permuted digits of scikit-learn, or MNIST rotated by ten degrees per task. The network
is LeNet-300-100 with superfluous output neurons, and the inference is one-shot. As in the paper, all predictions for a
batch count as wrong if its task is inferred wrongly. The result file also has the accuracy with the id given, the
accuracy if only the gradient of the first layer is used, and the time and memory per task. ``--plot`` draws a result
file.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.optim import RMSprop
from tqdm import tqdm

from avalanche_supermask import CachedTensors, MaskedModel, SupSup, save
from avalanche_supermask.data.cached import load_tensors
from avalanche_supermask.inference import Binary, OneShot
from avalanche_supermask.model.superposition import Superposition
from benchmarks.lib.command import device_name, run_or_draw
from benchmarks.lib.endless import Endless
from benchmarks.lib.networks import mlp

BATCH = 128
CLASSES = 10


def score(strategy: SupSup, tasks: Endless, asked: list[int], options: argparse.Namespace) -> dict[str, float]:
    """Return accuracies of learned tasks: with the id given, and inferred from the first images of each batch."""
    model = strategy.model.eval()
    ways = {"oneshot": OneShot, "binary": Binary}
    classes = CLASSES if options.objective == "G" else None
    find = ways[options.inference](options.objective, classes, per="batch", images=options.images or None)
    first_layer = replace(find, layers=model.masked_names[:1])  # Only its gradient depends on the order of the pixels.
    superposition = Superposition(model)
    given, inferred, found_ids, by_first, found_by_first, seconds, answered = [], [], [], [], [], 0.0, 0
    for task in asked:
        x, y, t = load_tensors(tasks.test(task).dataset, strategy.device)
        with torch.no_grad():
            right = (model(x, t).argmax(dim=1) == y).float()
            batches, answers = x.split(options.share), right.split(options.share)
            chosen = torch.linspace(0, len(batches) - 1, min(options.queries, len(batches))).round().long().tolist()
            by_batch = torch.tensor([float(answers[i].mean()) for i in chosen])
            queries = [batches[i] for i in chosen]
            started = time.perf_counter()
            found = _ask(find, superposition, queries, options)
            seconds += time.perf_counter() - started
            found_first = _ask(first_layer, superposition, queries, options)
            answered += len(found)
        keys = torch.tensor(model.task_keys)
        is_right, is_right_first = (keys[found] == task).float(), (keys[found_first] == task).float()
        given.append(float(right.mean()))
        found_ids.append(float(is_right.mean()))
        inferred.append(float((is_right * by_batch).mean()))
        found_by_first.append(float(is_right_first.mean()))
        by_first.append(float((is_right_first * by_batch).mean()))
    return {
        "learned": len(model.task_keys),
        "asked": len(asked),
        "accuracy_given": statistics.fmean(given),
        "accuracy_inferred": statistics.fmean(inferred),
        "task_id_accuracy": statistics.fmean(found_ids),
        "accuracy_by_first_layer": statistics.fmean(by_first),
        "task_id_accuracy_by_first_layer": statistics.fmean(found_by_first),
        "milliseconds_a_query": 1000 * seconds / answered,
    }


def _ask(
    find: Any, superposition: Superposition, queries: list[torch.Tensor], options: argparse.Namespace
) -> torch.Tensor:
    """Return the number of the inferred task of each batch."""
    n = len(superposition.keys)
    if options.images == 1:  # Inferred as single samples, the images share one pass over the bits.
        one_each = replace(find, per="sample", images=None)
        return one_each(superposition, n, torch.cat([part[:1] for part in queries]))  # type: ignore[no-any-return]
    return torch.stack([find(superposition, n, part)[0] for part in queries])


def _disk_mb(model: MaskedModel) -> float:
    """Return the size of the compact file of all tasks, in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tasks"
        save(model, file)
        return file.stat().st_size / 2**20


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Learn the tasks in turn, and yield a row of results at each checkpoint."""
    tasks = Endless(options.kind, options.dataset_root, validation=options.validation)
    checkpoints = sorted({int(k) for k in options.checkpoints.split(",")} | {options.tasks})
    hidden = tuple(int(width) for width in options.hidden.split(","))
    net = mlp(tasks.train(0).dataset[0][0].numel(), hidden, options.outputs)
    strategy = SupSup(
        net,
        optimizer=RMSprop(net.parameters(), lr=options.mask_lr) if options.optimizer == "rmsprop" else None,
        density=options.density or None,
        layer_densities=options.layer_densities,
        mask_lr=options.mask_lr,
        init="signed_constant",
        schedule=options.schedule,
        train_epochs=1,
        train_mb_size=BATCH,
        device=options.device,
        evaluator=None,
        plugins=[CachedTensors()],
        seed=options.seed,
    )
    seconds: list[float] = []
    draw = torch.Generator().manual_seed(options.seed)
    for task in tqdm(range(options.tasks), unit="task"):
        passes = -(-options.batches * BATCH // tasks.samples)
        order = torch.cat([torch.randperm(tasks.samples, generator=draw) for _ in range(passes)])
        train = tasks.train(task, rows=order[: options.batches * BATCH])
        started = time.perf_counter()
        strategy.train(train)
        seconds.append(time.perf_counter() - started)
        if task + 1 in checkpoints:
            asked = torch.randperm(task + 1, generator=draw)[: options.asked].sort().values.tolist()
            row = score(strategy, tasks, asked, options)
            row["seconds_a_task"] = statistics.median(seconds[-50:])
            row["peak_ram_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            row["mask_mb"] = strategy.model.subnetworks.masks.nbytes / 2**20
            row["disk_mb"] = _disk_mb(strategy.model)
            tqdm.write(json.dumps({k: round(v, 4) for k, v in row.items()}))
            yield row


def plot(result: dict[str, Any], picture: Path) -> None:
    """Draw accuracies, and the time and memory of a task, over the number of learned tasks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    rows = result["rows"]
    learned = [row["learned"] for row in rows]
    for key, name in (
        ("accuracy_given", "task id given"),
        ("accuracy_inferred", "inferred (GNu)"),
        ("accuracy_by_first_layer", "inferred by the first layer"),
        ("task_id_accuracy", "right task id"),
    ):
        if key in rows[0]:  # Older files have no results of the first layer.
            left.plot(learned, [row[key] for row in rows], marker="o", label=name)
    left.set(xlabel="tasks learned", ylabel="accuracy", ylim=(0, 1.02))
    left.legend()
    for key in ("seconds_a_task", "milliseconds_a_query", "peak_ram_mb", "mask_mb", "disk_mb"):
        if key in rows[0]:
            right.plot(learned, [row[key] for row in rows], marker="o", label=key.replace("_", " "))
    right.set(xlabel="tasks learned", yscale="log")
    right.legend()
    figure.savefig(picture, dpi=120)


def main() -> None:
    """Run, or draw a result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("permuted", "digits", "rotated"), default="permuted", help="(permuted)")
    parser.add_argument("--hidden", default="300,100", help="widths of the hidden layers (default %(default)s)")
    parser.add_argument("--inference", choices=("oneshot", "binary"), default="oneshot", help="(oneshot)")
    parser.add_argument("--share", type=int, default=128, help="test images that share an inferred task (default: 128)")
    parser.add_argument("--images", type=int, default=1, help="of them, that decide; 0: all (default: the paper's 1)")
    parser.add_argument("--tasks", type=int, default=250, help="permutations (default %(default)s)")
    parser.add_argument("--batches", type=int, default=1000, help="of 128, for each task (default: the paper's 1000)")
    parser.add_argument(
        "--outputs", type=int, default=100, help="output neurons, ten of them real (default: paper's 100)"
    )
    parser.add_argument("--objective", choices=("G", "H"), default="G", help="of the inference (default %(default)s)")
    parser.add_argument("--density", type=float, default=0.2, help="0: threshold-at-zero masks (default %(default)s)")
    parser.add_argument("--layer-densities", choices=("uniform", "erdos_renyi"), default="uniform", help="(uniform)")
    parser.add_argument("--mask-lr", type=float, default=0.02, help="(default %(default)s)")
    parser.add_argument(
        "--optimizer",
        choices=("adam", "rmsprop"),
        default="adam",
        help="with a cosine, or constant as in the paper (adam)",
    )
    parser.add_argument("--schedule", choices=("constant", "cosine"), help="of the rate (default: the optimizer's)")
    parser.add_argument("--checkpoints", default="10,50,100,150,200", help="numbers of tasks to score at")
    parser.add_argument("--asked", type=int, default=50, help="tasks asked at each checkpoint (default %(default)s)")
    parser.add_argument(
        "--queries", type=int, default=79, help="batches asked of each, evenly spread; 79 are all (default %(default)s)"
    )
    parser.add_argument("--validation", type=float, default=0.0, help="test on this share of the training data instead")
    parser.add_argument("--device", default="cpu", type=device_name, help="cpu or cuda (default cpu)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    run_or_draw(parser, "benchmarks.papers.unknown_ids", run, plot)


if __name__ == "__main__":
    main()
