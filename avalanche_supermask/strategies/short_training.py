"""Train a copy of a model, to test a setting or to make one more mask before a task is learned."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from avalanche_supermask import nested
from avalanche_supermask.distributed import average_statistics, averaged
from avalanche_supermask.learning_rates import chosen_rates, group_by_rate
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.phases import Schedule, scheduled

__all__ = ["train_copy"]


def train_copy(
    model: MaskedModel,
    batches: Any,
    *,
    lr: float | Literal["rule"],
    epochs: int,
    criterion: Callable[[Any, Tensor], Tensor],
    device: torch.device,
    after_backward: Callable[[MaskedModel], None] | None = None,
    schedule: Schedule = "constant",
    labelled: bool = True,
    seed: int | None = None,
) -> None:
    """Train the trainable tensors of a model in place with Adam; torch's random state on the CPU is restored.

    Args:
        model: a copy of the model, whose phase has begun.
        batches: loader of minibatches ``[x, y, ..., task_label]``, or ``[x, y, ...]`` without labels; each epoch is one
            pass over it.
        lr: learning rate; ``"rule"``: a separate rate for each layer (see `learning_rates`).
        epochs: number of passes over the batches.
        criterion: function that returns the loss of outputs and labels.
        device: device of the model.
        after_backward: function that is called with the model after each backward pass, when gradients exist.
        schedule: schedule of the learning rate, ``"constant"`` (default) or ``"cosine"``.
        labelled: whether the last entry of a minibatch is the task labels (default True).
        seed: seed for the order of the batches; None (default): torch's current random state determines the order.
    """
    total = epochs * len(batches)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=1e-3 if lr == "rule" else lr)
    if lr == "rule":
        group_by_rate(optimizer, chosen_rates(model, total))
    factor = partial(scheduled, schedule, steps=total, rises=lr == "rule")
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    model.train()
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        with averaged(model.parameters()) as average:
            for batch in (batch for _ in range(epochs) for batch in batches):
                x, y, *rest = nested.moved(list(batch), device)
                optimizer.zero_grad()
                average.samples = nested.batch_size(y)
                criterion(model(x, rest[-1]) if labelled else model(x), y).backward()
                if after_backward is not None:
                    after_backward(model)
                optimizer.step()
                scheduler.step()
    average_statistics(model.net.buffers())
