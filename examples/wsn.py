"""Another method in one file: WSN, winning subnetworks (Kang et al. 2022), which trains weights and mask together.

Every step trains the scores, and also the weights that no earlier task uses. The mask of a task may reuse the others.

    W_eff = M ⊙ W     M = top_c(|S|)     dL/dS straight-through     dL/dW only outside the masks of earlier tasks

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
    """WSN as a plugin: weights and scores are trained together.

    Args:
        density: fraction c of the weights that a task selects (default 0.3).
        arguments: arguments of `SubnetworkPlugin`.
    """

    def __init__(self, *, density: float = 0.3, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.density = density

    def phases(self, epochs: int) -> list[Phase]:
        """Return a single phase."""
        return [Phase("both", epochs)]

    def begin_task(self, strategy: Any, model: MaskedModel) -> None:
        """Do nothing: the scores continue from those of the previous task, as in the paper."""

    def enter_phase(self, phase: Phase, model: MaskedModel) -> None:
        """Train the scores, and the weights that no finished task uses."""
        free = {name: ~owned for name, owned in model.owned().items()}
        model.learn_scores(selection(model.masked_shapes, density=self.density), trainable=free)


@register("wsn")
class WSN(SubnetworkStrategy):
    """Winning subnetworks (Kang et al. 2022).

    Args:
        model: any module.
        density: fraction c of the weights that a task selects (default 0.3).
        lr: learning rate of Adam if no optimizer is passed (default 5e-3, for few epochs; 1e-3 in the paper).
        optimizer: an optimizer with the parameters of ``model``; None (default): Adam with a cosine schedule.
        arguments: arguments of `MaskedModel` and of any Avalanche strategy.
    """

    def __init__(
        self, model: nn.Module, *, density: float = 0.3, lr: float = 5e-3, optimizer: Any = None, **arguments: Any
    ) -> None:
        method = WSNPlugin(density=density, schedule="cosine" if optimizer is None else "constant")
        arguments.setdefault("init", "keep")
        super().__init__(model=model, method=method, optimizer=optimizer, default_lr=lr, **arguments)


def main() -> None:
    """Learn five tasks with this method."""
    from digits import learn, network  # the file digits.py in this folder

    torch.manual_seed(0)
    strategy = learn(methods()["wsn"], network(), description=__doc__, epochs=6)
    for layer, capacity in strategy.model.capacity().items():
        print(f"{layer}: {capacity.owned} of {capacity.total} weights owned, {capacity.reused} by two tasks or more")


if __name__ == "__main__":
    main()
