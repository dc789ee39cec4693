"""Your own method in one file: Piggyback (Mallya et al. 2018), a thresholded mask over given weights.

A method needs two hooks, `phases` and `enter_phase`; this one also has a third, `begin_task`. When the method is
registered, the contract tests and the leaderboard can run it.
"""

from typing import Any

import torch
from torch import nn

from avalanche_supermask import MaskedModel, SubnetworkPlugin, SubnetworkStrategy, methods, register
from avalanche_supermask.plugin import Phase
from avalanche_supermask.selection import Threshold


class PiggybackPlugin(SubnetworkPlugin):
    """Piggyback as a plugin: M = [S >= 0]. All scores start at the same small number; the weights never change."""

    def phases(self, epochs: int) -> list[Phase]:
        """Return a single phase, in which the scores train."""
        return [Phase("mask", epochs)]

    def begin_task(self, strategy: Any, model: MaskedModel) -> None:
        """Set the initial scores, with which the mask keeps every weight."""
        model.set_scores({name: torch.full(s, 0.01) for name, s in model.masked_shapes.items()})

    def enter_phase(self, phase: Phase, model: MaskedModel) -> None:
        """Train the scores; the mask keeps the weights whose score is at least 0."""
        model.learn_scores(Threshold())


@register("piggyback")
class Piggyback(SubnetworkStrategy):
    """Piggyback over the given weights of the model."""

    def __init__(self, model: nn.Module, *, optimizer: Any = None, **arguments: Any) -> None:
        method = PiggybackPlugin(schedule="cosine" if optimizer is None else "constant")
        arguments.setdefault("init", "keep")
        super().__init__(model=model, method=method, optimizer=optimizer, default_lr=1e-3, **arguments)


def main() -> None:
    """Learn five tasks with this method."""
    from digits import learn, network  # the file digits.py in this folder

    torch.manual_seed(0)
    strategy = learn(methods()["piggyback"], network(), description=__doc__, epochs=6)
    for key in strategy.model.task_keys:
        mask = strategy.model.task_mask(key).values()
        print(f"task {key} keeps {sum(int(m.sum()) for m in mask)} of {sum(m.numel() for m in mask)} weights")


if __name__ == "__main__":
    main()
