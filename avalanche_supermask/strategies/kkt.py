"""KKT: start the scores of a new task from the old task that a nearest-neighbour test finds most useful.

Yadav & Bansal, "Exclusive Supermask Subnetwork Training for Continual Learning", Findings of ACL 2023.

For each old task, the training images of the new task pass through the subnetwork of the old task. The accuracy of a
KNN classifier on the features before the output layer measures how well this subnetwork separates the new classes. Two
thirds of the features are searched for neighbours, and one third is classified. The test uses only training data of
the current task, the same images for every old task, and it does not change the network.

Deviations. The features are the inputs of the output layer (after the last activation). Storing the old scores takes
32 bits per weight and task; by default they are rebuilt from the stored bit mask. If a class has fewer samples than the
published 200 neighbours, fewer neighbours vote. With 200 votes, every old task would appear useless in that case.
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

TRAIN_SHARE = 0.66  # share of the features that is searched for neighbours; the rest is classified


def knn_accuracy(features: Tensor, labels: Tensor, *, k: int = 200) -> float:
    """Return the accuracy of a k-nearest-neighbour vote with exact Euclidean distances.

    A tie between classes goes to the smallest label.

    Args:
        features: features ``(n, d)``; the first 66 % are searched for neighbours, the rest is classified.
        labels: class numbers ``(n,)``, integers from 0.
        k: number of neighbours that vote (default 200, as in the published code). It is reduced to the average number
            of searched samples per class, because with more votes the largest class wins whatever the features are.

    Returns:
        A number in [0, 1]; 0 if there are too few samples to split.
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
    """Record the input of the layer with weights that is called last in a forward pass."""
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
    """Return the inputs of the output layer for some batches, under the subnetwork of an old task: ``(n, d)``.

    Args:
        model: the model that holds the task.
        task: key of the task.
        batches: batches of inputs.
        call: function that calls the model with one batch under that task; None (default): ``model.forward_task``.
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
    """Return the old tasks whose scores a new task starts from; a tie goes to the task that was learned first.

    Args:
        accuracies: KNN accuracy under each old task, by key.
        rule: ``"knn_best"``: the best task, if it is better than chance; ``"knn_always"``: the best task;
            ``"knn_all"``: all tasks that are better than chance (the mean of their scores is used).
        chance: accuracy of a random guess, ``1 / classes``.

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
