"""Measure the accuracy of ExSSNeT's later tasks with and without KKT, for several numbers of training samples.

    python -m benchmarks.papers.kkt --dataset-root DIR --out benchmarks/results/kkt.json

In RotatedMNIST, tasks are more closely related the closer their angles are. Each task has one mask epoch and one weight
epoch over a part of its training samples. The variants are fresh scores, KKT as published (a copy of the scores of the
best old task) and soft KKT (``kkt_strength=0.5``: half copied, half fresh).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from avalanche_supermask import CachedTensors, ExSSNeT
from benchmarks.lib.accuracy import accuracy
from benchmarks.lib.command import device_name
from benchmarks.lib.provenance import write_result
from benchmarks.lib.streams import STREAMS, build_stream

VARIANTS: dict[str, dict[str, Any]] = {
    "fresh scores": {},
    "KKT as published": {"kkt": "knn_best"},
    "soft KKT": {"kkt": "knn_best", "kkt_strength": 0.5},
}


def run(variant: str, *, samples: int, seed: int, root: Path, device: str) -> dict[str, float]:
    """Return mean accuracy and mean overlap with earlier masks, over all tasks except the first."""
    spec = STREAMS["rotated-mnist"]
    stream = build_stream("rotated-mnist", seed=seed, dataset_root=root)
    torch.manual_seed(seed)
    strategy = ExSSNeT(
        spec.network(),
        density=0.1,
        layer_densities="erdos_renyi",
        mask_lr=5e-3,
        init="signed_constant",
        weight_lr=1e-2,
        train_epochs=2,
        train_mb_size=spec.batch_size,
        device=device,
        evaluator=None,
        plugins=[CachedTensors()],
        seed=seed,
        **VARIANTS[variant],
    )
    accuracies = []
    for train, test in zip(stream.train_stream, stream.test_stream, strict=True):
        chosen = torch.randperm(len(train.dataset), generator=torch.Generator().manual_seed(seed))[:samples]
        train.dataset = train.dataset.subset(chosen.tolist())
        strategy.train(train)
        accuracies.append(accuracy(strategy.model, test))
    overlaps = list(strategy.model.overlap().values())
    return {"accuracy": statistics.fmean(accuracies[1:]), "overlap": statistics.fmean(overlaps[1:])}


def main() -> None:
    """Run all variants and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-root", type=Path, required=True, help="where torchvision keeps MNIST")
    parser.add_argument("--samples", default="2560,10240,40960", help="training samples a task (default %(default)s)")
    parser.add_argument("--device", default="cpu", type=device_name, help="cpu or cuda (default cpu)")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/kkt.json"), help="result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for samples in map(int, options.samples.split(",")):
        for variant in VARIANTS:
            runs = [
                run(variant, samples=samples, seed=seed, root=options.dataset_root, device=options.device)
                for seed in map(int, options.seeds.split(","))
            ]
            accuracy = [r["accuracy"] for r in runs]
            rows.append({"samples": samples, "variant": variant, "runs": runs})
            mean, spread = statistics.fmean(accuracy), statistics.pstdev(accuracy)
            overlap = statistics.fmean(r["overlap"] for r in runs)
            print(f"{samples:6} samples  {variant:18} {mean:.4f} ± {spread:.4f}  overlap {overlap:.2f}", flush=True)
    write_result(options.out, "benchmarks.papers.kkt", sys.argv[1:], rows=rows)


if __name__ == "__main__":
    main()
