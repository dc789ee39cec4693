"""KKT: start a new task's scores from the old task that a nearest-neighbour test finds most useful.

Yadav & Bansal, "Exclusive Supermask Subnetwork Training for Continual Learning", Findings of ACL 2023.

For each old task, the new task's training images pass through that task's subnetwork; a KNN classifier on the
features before the output layer tells how well it separates the new classes. Two thirds of the features are
searched, one third is classified. Data of the current task's training set alone are used, the same images for
every old task, and nothing of the network changes.

Deviations. Features are the output layer's input (after the last activation). The old scores themselves need
32 bits per weight and task; by default they are rebuilt from the stored bit mask. Fewer neighbours vote where a
class has fewer samples than the published 200: with all of them voting, every old task would look useless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_supermask.model.masked_model import MaskedModel

__all__ = ["Sources", "choose_sources", "features", "knn_accuracy"]

Sources = Literal["knn_best", "knn_always", "knn_all"]

TRAIN_SHARE = 0.66  # of the features; the rest is classified


def knn_accuracy(features: Tensor, labels: Tensor, *, k: int = 200) -> float:
    """Accuracy of a k-nearest-neighbour vote, Euclidean, exact; ties go to the smallest label.

    Args:
        features: ``(n, d)``; the first 66 % are searched, the rest is classified.
        labels: ``(n,)``, integers from 0.
        k: neighbours that vote (default 200, the published code's), at most as many as a class has on average:
            where more vote, the largest class wins whatever the features say.

    Returns:
        A number in [0, 1]; 0 where there are too few samples to split.
    """
    import faiss

    split = int(TRAIN_SHARE * len(features))
    if split == 0 or split == len(features):
        return 0.0
    searched = np.ascontiguousarray(features[:split].cpu().float().numpy())
    queries = np.ascontiguousarray(features[split:].cpu().float().numpy())
    index: Any = faiss.IndexFlatL2(searched.shape[1])
    if features.is_cuda and hasattr(faiss, "StandardGpuResources"):
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), features.device.index or 0, index)
    index.add(searched)
    classes = int(labels.max()) + 1
    _, neighbours = index.search(queries, max(1, min(k, split // classes)))
    votes = labels[:split].cpu()[torch.from_numpy(neighbours)]  # (queries, k)
    counts = torch.nn.functional.one_hot(votes, classes).sum(dim=1)
    return float((counts.argmax(dim=1) == labels[split:].cpu()).float().mean())


@contextmanager
def _output_layer_input(model: MaskedModel) -> Iterator[list[Tensor]]:
    """Catches what flows into the last layer that holds weights, whichever that is in this network."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].is_floating_point():
            caught[:] = [inputs[0].detach()]

    layers = {name.rpartition(".")[0] for name, p in model.net.named_parameters() if p.dim() >= 2}
    hooks = [model.net.get_submodule(name).register_forward_pre_hook(catch) for name in layers]
    try:
        yield caught
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def features(model: MaskedModel, task: int, batches: list[Any], *, call: Callable[[Any], Any] | None = None) -> Tensor:
    """Inputs of the output layer for these batches, under an old task's subnetwork: ``(n, d)``.

    Args:
        model: of the task.
        task: its key.
        batches: inputs.
        call: what calls the model with one of them under that task; None: ``model.forward_task``.
    """
    was_training = model.training
    model.eval()
    collected = []
    try:
        with _output_layer_input(model) as caught:
            for x in batches:
                call(x) if call is not None else model.forward_task(task, x)
                found = caught[0]
                collected.append(found.flatten(1) if found.dim() == 2 or found.dim() == 4 else found.mean(dim=1))
    finally:
        model.train(was_training)
    return torch.cat(collected)


def choose_sources(accuracies: Mapping[int, float], *, rule: Sources, chance: float) -> list[int]:
    """Old tasks whose scores a new task starts from; ties go to the task learned first.

    Args:
        accuracies: KNN accuracy under each old task.
        rule: ``knn_best``: the best, if better than chance; ``knn_always``: the best; ``knn_all``: all that
            are better than chance (their mean is used).
        chance: ``1 / classes``.

    Example:
        >>> choose_sources({0: 0.4, 1: 0.8, 2: 0.6}, rule="knn_all", chance=0.5)
        [1, 2]
    """
    if not accuracies:
        return []
    best = max(accuracies, key=lambda task: accuracies[task])
    if rule == "knn_always":
        return [best]
    better = [task for task, accuracy in accuracies.items() if accuracy > chance]
    return better if rule == "knn_all" else [best] if best in better else []
