"""Measure whether KKT learns a related text task in fewer epochs than fresh scores.

    python -m benchmarks.papers.kkt_text --dataset-root DIR --out benchmarks/results/kkt_text.json

There are two sequences of related data sets: sentiment (yelp, amazon, sst2) and topics (ag_news, dbpedia, yahoo), with
100 training and 50 test texts per class. The network is ExSSNeT's CNN on a frozen MiniLM. The test accuracy after every
epoch is compared for fresh scores, KKT as published (a copy of the scores of the best old task) and soft KKT (half
copied, half fresh). The first epochs train masks, and the last ones train weights. ``--plot`` draws a result file.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin
from tqdm import tqdm

from avalanche_supermask import CachedTensors, ExSSNeT
from avalanche_supermask.metrics import AccuracyOverSteps
from benchmarks.lib.command import device_name, run_or_draw
from benchmarks.lib.streams import with_validation
from benchmarks.lib.text import cnn, datasets
from benchmarks.papers.kkt import VARIANTS

SEQUENCES = {
    "sentiment": ("yelp_review_full", "amazon_review_full", "sst2"),
    "topics": ("ag_news", "dbpedia", "yahoo_answers"),
}
CLASSES = 14  # the number of classes of dbpedia, the largest
FEATURES = "related"


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row per sequence, variant and seed, with the curve of each task except the first."""
    for sequence, names in SEQUENCES.items():
        stream = datasets(names, FEATURES, 0, options.dataset_root, max_per_class=(100, 50))
        if options.validation:
            stream = with_validation(stream, share=options.validation, seed=0)
        network = cnn(CLASSES, FEATURES, options.dataset_root)
        for seed in range(options.seed, options.seed + options.seeds):
            for variant, settings in VARIANTS.items():
                torch.manual_seed(seed)
                curves = curves_of(network(), stream, settings, seed, options)
                yield {
                    "sequence": sequence,
                    "variant": variant,
                    "seed": seed,
                    "curves": dict(zip(names[1:], curves[1:], strict=True)),
                }


def curves_of(
    net: torch.nn.Module, stream: Any, settings: dict[str, Any], seed: int, options: argparse.Namespace
) -> list[list[float]]:
    """Return, for each task, the test accuracies before the first epoch and after every epoch."""
    strategy = ExSSNeT(
        net,
        density=options.density,
        mask_lr=options.mask_lr,
        init="signed_constant",
        train_epochs=options.epochs,
        weight_epochs=options.weight_epochs,
        train_mb_size=32,
        device=options.device,
        evaluator=None,
        plugins=[CachedTensors()],
        seed=seed,
        **settings,
    )
    curves = []
    for train, test in zip(tqdm(stream.train_stream, desc=str(settings), unit="task"), stream.test_stream, strict=True):
        metric = AccuracyOverSteps(test, every=10**9)  # The end of an epoch is always measured.
        strategy.evaluator = EvaluationPlugin(metric, loggers=[], strict_checks=False)
        strategy.plugins.append(strategy.evaluator)
        strategy.train(train)
        strategy.plugins.remove(strategy.evaluator)
        curves.append([accuracy for _, accuracy in metric.result()])
    return curves


def plot(result: dict[str, Any], picture: Path) -> None:
    """Draw the mean curves over the seeds, with one panel per task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = [(sequence, name) for sequence, names in SEQUENCES.items() for name in names[1:]]
    figure, axes = plt.subplots(1, len(tasks), figsize=(3 * len(tasks), 2.8), layout="constrained")
    for axis, (sequence, name) in zip(axes, tasks, strict=True):
        for variant in VARIANTS:
            rows = [r for r in result["rows"] if r["sequence"] == sequence and r["variant"] == variant]
            curves = [row["curves"][name] for row in rows]
            axis.plot([statistics.fmean(at) for at in zip(*curves, strict=True)], marker=".", label=variant)
        masks = result["options"]["epochs"] - result["options"]["weight_epochs"]
        axis.axvline(masks, color="0.7", linewidth=1)
        axis.set(title=f"{name} ({sequence})", xlabel="epochs")
        axis.title.set_fontsize(9)
    axes[0].set_ylabel("test accuracy")
    axes[-1].legend(fontsize=8, loc="lower right")
    figure.savefig(picture, dpi=110)


def main() -> None:
    """Run, or draw a result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8, help="a task (default %(default)s)")
    parser.add_argument("--weight-epochs", type=int, default=2, help="last ones, of weights (default %(default)s)")
    parser.add_argument("--density", type=float, default=0.1, help="of the masks (default %(default)s)")
    parser.add_argument("--mask-lr", type=float, default=5e-3, help="Adam, cosine (default %(default)s)")
    parser.add_argument("--validation", type=float, default=0.0, help="test on this share of the training data instead")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="first seed (default %(default)s)")
    parser.add_argument("--device", default="cpu", type=device_name, help="cpu or cuda (default cpu)")
    run_or_draw(parser, "benchmarks.papers.kkt_text", run, plot)


if __name__ == "__main__":
    main()
