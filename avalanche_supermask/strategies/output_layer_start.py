"""Fits a task's own output layer to the features of the base, before any other weight of the task trains.

It follows Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022
(linear probing, then fine-tuning).

Idea. A new output layer is random, so the first gradients with respect to all other weights are random, too. They
choose entries at random, and they change good features before the output layer can use them. While only the output
layer trains, its inputs do not change. They are computed once for a sample of the training data, and each epoch over
them costs a single layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from avalanche_supermask.model.heads import output_layer
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.phases import cosine
from avalanche_supermask.strategy_batch import minibatch

__all__ = ["fit_output_layer"]

SHARE = 0.1  # Adam's rate as a share of 1 / sqrt(inputs of the layer), as for scores (see `learning_rates`)

Caught = tuple[Any, Tensor]  # a minibatch of the strategy, and the output layer's inputs for it


def fit_output_layer(strategy: Any, model: MaskedModel, batches: Iterable[Any], *, epochs: int) -> bool:
    """Train the output layer of the current task on the features of these batches, by Adam with a cosine schedule.

    Nothing is trained if the outputs of the network are not those of its output layer, or if that layer is masked. If
    the loss becomes NaN or infinite, the layer gets its first values back.

    Args:
        strategy: the strategy, for its criterion and its forward pass.
        model: its model, in which the own tensors of a task are being trained.
        batches: batches of the training data.
        epochs: number of passes over the features.

    Returns:
        Whether the layer was trained.
    """
    place = output_layer(model.net)
    layer = model.net.get_submodule(place)
    trained = [p for p in layer.parameters() if p.requires_grad]
    masked = any(name.startswith(f"{place}.") for name in model.masked_names)
    if not epochs or not trained or masked:
        return False
    caught = _features(strategy, model, layer, batches)
    if caught is None:
        return False
    before = [p.detach().clone() for p in trained]
    steps, fan_in = epochs * len(caught), max(1, trained[0].numel() // len(trained[0]))
    optimizer = Adam(trained, lr=SHARE / math.sqrt(fan_in))
    schedule = LambdaLR(optimizer, lambda step: cosine(step / steps))
    finite = True
    for _ in range(epochs):
        for batch, features in caught:
            with minibatch(strategy, batch, unpacked=True):
                strategy.mb_output = layer(features)
                loss = strategy.criterion()
            finite = finite and bool(loss.isfinite())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    if not finite:
        with torch.no_grad():
            for p, value in zip(trained, before, strict=True):
                p.copy_(value)
    for p in trained:
        p.grad = None
    return finite


@torch.no_grad()
def _features(strategy: Any, model: MaskedModel, layer: nn.Module, batches: Iterable[Any]) -> list[Caught] | None:
    """Return the layer's inputs for each batch; None if its outputs are not the outputs of the network."""
    seen: list[tuple[Tensor, Any]] = []
    handle = layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    was_training = model.training
    model.eval()
    found: list[Caught] = []
    try:
        for batch in batches:
            seen.clear()
            with minibatch(strategy, batch), model.router.answering(model.active):
                outputs = strategy.forward()
                if len(seen) != 1 or not isinstance(outputs, Tensor) or not _same(outputs, seen[0][1]):
                    return None
                found.append((strategy.mbatch, seen[0][0]))
    finally:
        handle.remove()
        model.train(was_training)
    return found


def _same(outputs: Tensor, of_layer: Any) -> bool:
    return isinstance(of_layer, Tensor) and outputs.shape == of_layer.shape and torch.equal(outputs, of_layer)
