"""Measure how well a model separates CLINC150's out-of-scope texts from the texts of its ten domains.

    python -m benchmarks.practice.novelty --dataset-root DIR --out benchmarks/results/novelty.json

Every learned task is tried on every text, as in `Entropy` inference. The novelty score of a text is the lowest entropy
over the tasks. The result file has the area under the ROC curve of that score, the accuracy of the inferred task and of
the intent on in-scope texts, and the accuracy with the task given.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from avalanche_supermask import CachedTensors, methods
from avalanche_supermask.data.cached import load_tensors
from avalanche_supermask.inference import entropy
from avalanche_supermask.text import TokenFeatures, text_cnn, tokenise
from benchmarks.lib.command import run_or_draw
from benchmarks.lib.text import MAX_LENGTH, clinc150, encoder, features_file, out_of_scope


@torch.no_grad()
def entropies(model: Any, x: Tensor) -> Tensor:
    """Return the entropy of the outputs of every task for every text: ``(tasks, texts)``."""
    by_task = [[entropy(model.forward_task(key, part)) for part in x.split(256)] for key in model.task_keys]
    return torch.stack([torch.cat(parts) for parts in by_task])


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one row per method."""
    stream = clinc150(0, options.dataset_root)
    features = TokenFeatures(encoder(options.dataset_root), file=features_file("clinc150", options.dataset_root))
    novel = tokenise(out_of_scope(options.dataset_root), encoder(options.dataset_root), max_length=MAX_LENGTH)
    for method in options.methods.split(","):
        torch.manual_seed(options.seed)
        strategy = methods()[method](
            text_cnn(features, 15, filters=100), train_epochs=4, train_mb_size=32, evaluator=None, seed=options.seed,
            plugins=[CachedTensors()], density=options.density, layer_densities="erdos_renyi", mask_lr=options.mask_lr,
        )  # fmt: skip
        for experience in stream.train_stream:
            strategy.train(experience)
        model = strategy.model.eval()
        x, y, task = (torch.cat(column) for column in zip(*map(_tensors, stream.test_stream), strict=True))
        known, unknown = entropies(model, x), entropies(model, novel)
        scores = torch.cat([known.min(dim=0).values, unknown.min(dim=0).values])
        is_novel = torch.cat([torch.zeros(len(x)), torch.ones(len(novel))])
        found = known.argmin(dim=0)
        with torch.no_grad():
            intents = {
                name: torch.cat([model(a, b).argmax(dim=1) for a, b in zip(x.split(256), t.split(256), strict=True)])
                for name, t in (("given", task), ("inferred", found))
            }
        yield {
            "method": method,
            "auroc": float(roc_auc_score(is_novel, scores)),
            "task_id_accuracy": float((found == task).float().mean()),
            "accuracy_inferred": float(((intents["inferred"] == y) & (found == task)).float().mean()),
            "accuracy_given": float((intents["given"] == y).float().mean()),
            "in_scope": len(x),
            "out_of_scope": len(novel),
        }


def _tensors(experience: Any) -> list[Tensor]:
    return load_tensors(experience.dataset, torch.device("cpu"))


def main() -> None:
    """Run and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="supsup,exssnet", help="comma-separated (default %(default)s)")
    parser.add_argument("--density", type=float, default=0.1, help="(default %(default)s)")
    parser.add_argument("--mask-lr", type=float, default=0.05, help="(default: chosen for supsup on held-out data)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    run_or_draw(parser, "benchmarks.practice.novelty", run, None)


if __name__ == "__main__":
    main()
