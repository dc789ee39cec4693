"""All finished tasks of a model at once: the network of ``W ⊙ Σ a_i M_i``, and its gradient by the coefficients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

__all__ = ["Superposition"]


class Superposition:
    """Finished tasks of a model, numbered in the order in which they were learned; what inference asks of it.

    Args:
        model: a `MaskedModel` in evaluation mode; nothing of it changes.

    Raises:
        ValueError: see `gradient`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.keys = model.task_keys
        self.slots = [model.subnetworks.tasks[key].slot for key in self.keys]

    @torch.no_grad()
    def outputs(self, task: int, x: Any) -> Tensor:
        """Logits under one task."""
        out: Tensor = self.model.forward_task(self.keys[task], x)
        return out

    def gradient(self, x: Any, coefficients: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
        """Derivative of an objective of the logits by the coefficients.

        Running statistics are superposed too, but held constant, as PyTorch does not differentiate by them.

        Raises:
            ValueError: tasks have tensors under different names (heads of their own), so there is no sum of them.
        """
        store = self.model.subnetworks
        private = [self._private(key) for key in self.keys]
        names = set(private[0])
        if any(set(other) != names for other in private):
            raise ValueError(
                "the tasks have heads of their own, which cannot be superposed; use task_inference='entropy' or "
                "'max_logit', or one shared output layer"
            )
        sums = store.masks.superpose(coefficients, self.slots)
        leaves = {name: store.frozen[name] * m.to(store.frozen[name]) for name, m in sums.items()}
        own = {
            name: torch.einsum("k,k...->...", coefficients.to(t), torch.stack([p[name] for p in private]))
            for name, t in private[0].items()
        }
        buffers = {name for name, _ in self.model.net.named_buffers()}
        learns = {n: t.detach().requires_grad_(True) for n, t in {**leaves, **own}.items() if n not in buffers}
        given = {**self.model.fresh, **self.model.shared, **own, **learns}
        label = store.tasks[self.keys[0]].label
        with torch.enable_grad():
            loss = objective(functional_call(self.model.net, given, self.model.arguments(x, label)))
            found = torch.autograd.grad(loss, list(learns.values()), allow_unused=True)
        grads = {name: g for name, g in zip(learns, found, strict=True) if g is not None}
        total: Tensor = store.masks.project({n: grads[n] * store.frozen[n] for n in leaves if n in grads}, self.slots)
        for i, task in enumerate(private):
            total[i] += sum(float((grads[name] * t).sum()) for name, t in task.items() if name in grads)
        return total.cpu()

    def _private(self, key: int) -> Mapping[str, Tensor]:
        """What is a task's own, as numbers; a statistic that it never moved is the fresh one."""
        stored = self.model.subnetworks.task_private(key)
        moved = {name for other in self.keys for name in self.model.subnetworks.task_private(other)}
        tensors = {name: stored.get(name, self.model.fresh.get(name)) for name in moved}
        return {name: t for name, t in tensors.items() if t is not None and t.is_floating_point()}
