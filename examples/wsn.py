"""Another method in one file: WSN, winning subnetworks (Kang et al. 2022), weights and mask learned together.

Every step trains the scores, and with them the weights that no earlier task has; a task's mask may reuse the others.

    W_eff = M ⊙ W     M = top_c(|S|)     dL/dS straight-through     dL/dW only where no earlier task's mask is

    python -m leaderboard run --suite digits --methods wsn,exssnet --import examples.wsn --out runs/wsn
    python -m pytest -p examples.wsn -k wsn tests/test_contract.py
"""

from typing import Any

import torch
from torch import nn

from avalanche_supermask import MaskedModel, SubnetworkPlugin, SubnetworkStrategy, methods, register
from avalanche_supermask.plugin import Phase
from avalanche_supermask.selection import selection


class WSNPlugin(SubnetworkPlugin):
    """Weights and scores learn at once.

    Args:
        density: c, the fraction of weights a task selects.
        arguments: see `SubnetworkPlugin`.
    """

    def __init__(self, *, density: float = 0.3, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.density = density

    def phases(self, epochs: int) -> list[Phase]:
        """One."""
        return [Phase("both", epochs)]

    def begin_task(self, strategy: Any, model: MaskedModel) -> None:
        """Scores go on from those of the task before, as in the paper."""

    def enter_phase(self, phase: Phase, model: MaskedModel) -> None:
        """What no task has may learn."""
        free = {name: ~owned for name, owned in model.owned().items()}
        model.learn_scores(selection(model.masked_shapes, density=self.density), trainable=free)


@register("wsn")
class WSN(SubnetworkStrategy):
    """Winning subnetworks.

    Args:
        model: any module.
        density: c, the fraction of weights a task selects (default 0.3).
        lr: Adam's learning rate where no optimizer is given (default 5e-3, for few epochs; the paper's is 1e-3).
        optimizer: used as it is; None for Adam with a cosine schedule.
        arguments: of `MaskedModel` and of any Avalanche strategy.
    """

    def __init__(
        self, model: nn.Module, *, density: float = 0.3, lr: float = 5e-3, optimizer: Any = None, **arguments: Any
    ) -> None:
        method = WSNPlugin(density=density, schedule="cosine" if optimizer is None else "constant")
        arguments.setdefault("init", "keep")
        super().__init__(model=model, method=method, optimizer=optimizer, default_lr=lr, **arguments)


def main() -> None:
    """Learn five tasks with it."""
    from digits import learn, network  # beside this file

    torch.manual_seed(0)
    strategy = learn(methods()["wsn"], network(), description=__doc__, epochs=6)
    for layer, capacity in strategy.model.capacity().items():
        print(f"{layer}: {capacity.owned} of {capacity.total} weights owned, {capacity.reused} by two tasks or more")


if __name__ == "__main__":
    main()
