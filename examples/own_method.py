"""A method of your own in one file: Piggyback (Mallya et al. 2018), a thresholded mask over weights that are given.

Two hooks make a method, `phases` and `enter_phase`; this one fills in a third, `begin_task`. Registered, it gets the
contract tests and a row of the leaderboard.
"""

from typing import Any

import torch
from torch import nn

from avalanche_supermask import MaskedModel, SubnetworkPlugin, SubnetworkStrategy, methods, register
from avalanche_supermask.plugin import Phase
from avalanche_supermask.selection import Threshold


class PiggybackPlugin(SubnetworkPlugin):
    """M = [S >= 0], all scores starting at the same small number; the weights never change."""

    def phases(self, epochs: int) -> list[Phase]:
        """One: the scores learn."""
        return [Phase("mask", epochs)]

    def begin_task(self, strategy: Any, model: MaskedModel) -> None:
        """Every weight is kept at first."""
        model.set_scores({name: torch.full(s, 0.01) for name, s in model.masked_shapes.items()})

    def enter_phase(self, phase: Phase, model: MaskedModel) -> None:
        """Say what learns."""
        model.learn_scores(Threshold())


@register("piggyback")
class Piggyback(SubnetworkStrategy):
    """Piggyback over the weights that the model brings."""

    def __init__(self, model: nn.Module, *, optimizer: Any = None, **arguments: Any) -> None:
        method = PiggybackPlugin(schedule="cosine" if optimizer is None else "constant")
        arguments.setdefault("init", "keep")
        super().__init__(model=model, method=method, optimizer=optimizer, default_lr=1e-3, **arguments)


def main() -> None:
    """Learn five tasks with it."""
    from digits import learn, network  # beside this file

    torch.manual_seed(0)
    strategy = learn(methods()["piggyback"], network(), description=__doc__, epochs=6)
    for key in strategy.model.task_keys:
        mask = strategy.model.task_mask(key).values()
        print(f"task {key} keeps {sum(int(m.sum()) for m in mask)} of {sum(m.numel() for m in mask)} weights")


if __name__ == "__main__":
    main()
