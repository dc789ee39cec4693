r"""Compare how fast ImpressLearn's coefficients and a SupSup mask from scratch learn a new task.

    python -m benchmarks.papers.adaptation --dataset-root DIR \
        --out benchmarks/results/adaptation.json --tb runs/adaptation

The stream is RotatedMNIST: six rotations are the basis, and the seventh and eighth are new. Both methods are trained on
the same samples for the same number of steps. The curves are written to TensorBoard as ``AccuracyOverSteps``, with one
run per method.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from avalanche.logging import TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin

from avalanche_supermask import CachedTensors, ImpressLearn, SupSup
from avalanche_supermask.metrics import AccuracyOverSteps
from benchmarks.lib.command import device_name
from benchmarks.lib.endless import KINDS, Endless
from benchmarks.lib.provenance import write_result

BASIS = 6


def build(method: type[Any], options: argparse.Namespace, evaluator: Any, **arguments: Any) -> Any:
    """Return a strategy on LeNet-300-100."""
    return method(
        KINDS["rotated"].network(),
        density=options.density,
        mask_lr=0.02,
        init="signed_constant",
        layer_densities="uniform",
        train_mb_size=128,
        device=options.device,
        evaluator=evaluator,
        plugins=[CachedTensors()],
        seed=options.seed,
        **arguments,
    )


def main() -> None:
    """Learn the basis, then each new task with both methods, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="of 128 samples (default %(default)s)")
    parser.add_argument("--every", type=int, default=5, help="steps between measurements (default %(default)s)")
    parser.add_argument("--density", type=float, default=0.25, help="of a mask (default %(default)s)")
    parser.add_argument("--basis-epochs", type=int, default=3, help="of each mask (default %(default)s)")
    parser.add_argument("--device", default="cpu", type=device_name, help="cpu or cuda (default cpu)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    parser.add_argument("--dataset-root", type=Path, required=True, help="where torchvision keeps MNIST, or puts it")
    parser.add_argument("--tb", type=Path, default=Path("runs/adaptation"), help="TensorBoard logs")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    tasks = Endless("rotated", options.dataset_root)
    logger = TensorboardLogger(tb_log_dir=str(options.tb / "impresslearn"))
    impress = build(ImpressLearn, options, EvaluationPlugin(loggers=[logger]), n_basis=BASIS)
    impress.train_epochs = options.basis_epochs
    for task in range(BASIS):
        impress.train(tasks(task)[0])
    impress.train_epochs = 1
    rows = []
    for task in (BASIS, BASIS + 1):
        train, test = tasks(task)
        order = torch.randperm(len(train.dataset), generator=torch.Generator().manual_seed(task))
        train.dataset = train.dataset.subset(order[: options.steps * 128].tolist())
        curves = {"impresslearn": impress.adapt(train, test=test, every=options.every)}
        metric = AccuracyOverSteps(test, every=options.every)
        scratch_log = TensorboardLogger(tb_log_dir=str(options.tb / "supsup"))
        build(SupSup, options, EvaluationPlugin(metric, loggers=[scratch_log])).train(train)
        curves["supsup"] = metric.result()
        rows.append({"task": task, "curves": curves})
        for method, curve in curves.items():
            print(task, f"{method:13}", "  ".join(f"{step}: {a:.3f}" for step, a in curve[:: max(1, len(curve) // 6)]))
    write_result(options.out, "benchmarks.papers.adaptation", sys.argv[1:], rows=rows)


if __name__ == "__main__":
    main()
