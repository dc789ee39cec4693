"""A fourth method in one file: HAT, hard attention to the task (Serrà et al., ICML 2018), with annealed gates per unit.

Every output unit of a layer has a gate. While a task is trained, the gate is soft, and its slope s rises within each
epoch from 1/s_max to s_max. At the end of the task the gate is hard.

    a_i = sigmoid(s e_i)     W_eff[i, :] = a_i W[i, :]     mask of a task: the rows with e_i > 0
    loss += c * (sum of the gates of units that no earlier task uses) / (number of all units)

Deviations. The published HAT scales the gradients of old weights by the attention of old tasks to them, so that these
weights can change a little. Here the rows of finished tasks are completely frozen, so nothing changes. The gates
multiply rows of the weights; the paper multiplies the activations of a layer, which has the same effect on a unit.

    python -m leaderboard run --suite digits --methods hat,exssnet --import examples.hat --out runs/hat
    python -m pytest -p examples.hat -k hat tests/test_contract.py
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_supermask import (
    MaskedModel,
    Phase,
    SubnetworkPlugin,
    SubnetworkStrategy,
    methods,
    register,
)
from avalanche_supermask.model.heads import output_layer


class Gates:
    """One gate per row of each weight; it depends on the mean score of the row."""

    def __init__(self) -> None:
        self.slope = 1.0  # the slope s

    def mask(self, name: str, scores: Tensor) -> Tensor:
        """Mark the rows with an open gate, and in any case the row with the largest e of the layer."""
        e = self.embedding(scores.detach())
        is_open = (e > 0) | (e == e.max())
        return is_open.expand_as(scores).clone()

    def weight(self, name: str, scores: Tensor, weight: Tensor) -> Tensor:
        """Return the weight with each row multiplied by its soft gate."""
        return weight * torch.sigmoid(self.slope * self.embedding(scores))

    @staticmethod
    def embedding(scores: Tensor) -> Tensor:
        """Return the mean score e of each row, in the shape of a column."""
        return scores.mean(dim=tuple(range(1, scores.dim())), keepdim=True) if scores.dim() > 1 else scores


class HATPlugin(SubnetworkPlugin):
    """HAT as a plugin: gates and free weights are trained together.

    Args:
        s_max: largest slope (default 400, as in the paper).
        strength: strength c of the penalty on open gates (default 0.75, as in the paper).
        arguments: arguments of `SubnetworkPlugin`.
    """

    def __init__(self, *, s_max: float = 400.0, strength: float = 0.75, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.s_max, self.strength = s_max, strength
        self.gates = Gates()

    def phases(self, epochs: int) -> list[Phase]:
        """Return a single phase."""
        return [Phase("gates and weights", epochs)]

    def begin_task(self, strategy: Any, model: MaskedModel) -> None:
        """Set fresh gates: one random number per row, from the task's fresh scores, with standard deviation 1."""
        fresh = model.fresh_scores(model.active or 0)
        rows = {name: s.flatten(1)[:, :1] if s.dim() > 1 else s for name, s in fresh.items()}
        spread = {name: r / r.std().clamp_min(1e-6) for name, r in rows.items()}
        model.set_scores(
            {name: spread[name].reshape(-1, *[1] * (s.dim() - 1)).expand_as(s) for name, s in fresh.items()}
        )

    def enter_phase(self, phase: Phase, model: MaskedModel) -> None:
        """Train the gates, and the weights that no finished task uses."""
        model.learn_scores(self.gates, trainable={name: ~owned for name, owned in model.owned().items()})

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Anneal the gates: s rises linearly over the batches of an epoch."""
        super().before_training_iteration(strategy, **kwargs)
        done = strategy.clock.train_epoch_iterations / max(1, len(strategy.dataloader) - 1)
        self.gates.slope = 1 / self.s_max + (self.s_max - 1 / self.s_max) * min(1.0, done)

    @torch.no_grad()
    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the gradient of the penalty, and apply the paper's compensation for the slope."""
        model: MaskedModel = strategy.model
        s, owned = self.gates.slope, model.owned()
        total = sum(scores.shape[0] for scores in model.scores.values())
        for name, scores in model.scores.items():
            if scores.grad is None:
                continue
            e = self.gates.embedding(scores)
            a = torch.sigmoid(s * e)
            free = ~owned[name].flatten(1).any(dim=1).reshape(e.shape)
            per_entry = scores.shape[0] / scores.numel()
            scores.grad += self.strength / total * s * a * (1 - a) * free * per_entry
            clamped = (s * e).clamp(-50, 50)
            scores.grad *= (self.s_max / s) * (clamped.cosh() + 1) / (e.cosh() + 1)


@register("hat")
class HAT(SubnetworkStrategy):
    """Hard attention to the task, with completely frozen weights of old tasks."""

    def __init__(
        self,
        model: nn.Module,
        *,
        s_max: float = 400.0,
        strength: float = 0.75,
        optimizer: Any = None,
        **arguments: Any,
    ) -> None:
        schedule = "cosine" if optimizer is None else "constant"
        method = HATPlugin(s_max=s_max, strength=strength, schedule=schedule)
        arguments.setdefault("init", "keep")
        if not isinstance(model, MaskedModel):  # as in the paper, the output layer is each task's own
            arguments.setdefault("own", [re.escape(output_layer(model)) + r"\..*"])
        super().__init__(model=model, method=method, optimizer=optimizer, default_lr=1e-2, **arguments)


def main() -> None:
    """Learn five tasks with this method."""
    from digits import learn, network  # the file digits.py in this folder

    torch.manual_seed(0)
    strategy = learn(methods()["hat"], network(), description=__doc__, epochs=6)
    for layer, capacity in strategy.model.capacity().items():
        print(f"{layer}: {capacity.owned} of {capacity.total} weights owned, {capacity.reused} by two tasks or more")


if __name__ == "__main__":
    main()
