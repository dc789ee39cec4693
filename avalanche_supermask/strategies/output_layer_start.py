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

from avalanche_supermask.logits import find_logits, replace_logits
from avalanche_supermask.model.heads import output_layer
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.phases import cosine
from avalanche_supermask.strategy_batch import minibatch

__all__ = ["fit_output_layer"]

SHARE = 0.1  # Adam's rate as a share of 1 / sqrt(inputs of the layer), as for scores (see `learning_rates`)

Caught = tuple[Any, Any, Tensor]  # a minibatch of the strategy, the network's output, and the output layer's inputs


def fit_output_layer(strategy: Any, model: MaskedModel, batches: Iterable[Any], *, epochs: int) -> bool:
    """Train the output layer of the current task on the features of these batches, by Adam with a cosine schedule.

    Nothing is trained if the logits of the network are not the outputs of its output layer, or if that layer is masked.
    If the loss becomes NaN or infinite, the layer gets its first values back.

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
        for batch, output, features in caught:
            with minibatch(strategy, batch, unpacked=True):
                strategy.mb_output = replace_logits(output, model.logits, layer(features))
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
    """Return the network's outputs and the layer's inputs; None if the logits are not the outputs of the layer."""
    seen: list[tuple[Tensor, Any]] = []
    handle = layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    was_training = model.training
    model.eval()
    found: list[Caught] = []
    try:
        for batch in batches:
            seen.clear()
            with minibatch(strategy, batch), model.router.answering(model.active):
                output = strategy.forward()
                if len(seen) != 1 or not _same(find_logits(output, model.logits), seen[0][1]):
                    return None
                found.append((strategy.mbatch, output, seen[0][0]))
    finally:
        handle.remove()
        model.train(was_training)
    return found


def _same(logits: Tensor, of_layer: Any) -> bool:
    return isinstance(of_layer, Tensor) and logits.shape == of_layer.shape and torch.equal(logits, of_layer)
