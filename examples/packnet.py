"""A third method in one file: PackNet (Mallya & Lazebnik 2018), also for networks with norm layers.

A task trains all free weights, keeps the largest of them, and fine-tunes these; it also reads every weight of earlier
tasks. Avalanche's PackNet refuses BatchNorm. Here each task has its own running statistics and, with
``per_task="norm"``, its own gain and shift, so nothing of an old task changes.

    python -m leaderboard run --suite digits --methods packnet-norm --import examples.packnet --out runs/packnet
    python -m pytest -p examples.packnet -k packnet tests/test_contract.py
"""

from typing import Any

import torch
from torch import Tensor, nn

from avalanche_supermask import MaskedModel, SubnetworkPlugin, SubnetworkStrategy, methods, register
from avalanche_supermask.functional import top_k_mask
from avalanche_supermask.plugin import Phase


class PackNetPlugin(SubnetworkPlugin):
    """PackNet as a plugin: train, prune, fine-tune.

    Args:
        n_tasks: expected number of tasks; each of them keeps the same share of every layer (default 5). After them, no
            weight is free.
        arguments: arguments of `SubnetworkPlugin`.
    """

    def __init__(self, *, n_tasks: int = 5, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.n_tasks = n_tasks

    def phases(self, epochs: int) -> list[Phase]:
        """Return the phases for training and fine-tuning, with half of the epochs each."""
        return [Phase("train", epochs - epochs // 2), Phase("finetune", epochs // 2)]

    def prepare(self, model: MaskedModel) -> None:
        """Do nothing, because this method has no scores."""

    def enter_phase(self, phase: Phase, model: MaskedModel) -> None:
        """Train all free weights; in the second phase only the largest of them. Both phases read earlier tasks."""
        owned = model.owned()
        if phase.name == "train":
            model.learn_weights(
                {n: ~m for n, m in owned.items()}, mask={n: torch.ones_like(m) for n, m in owned.items()}
            )
        else:
            mine = self._largest(model, owned)
            model.learn_weights(mine, mask={n: mine[n] | m for n, m in owned.items()}, restart=False)

    def end_task(self, strategy: Any, model: MaskedModel) -> None:
        """Prune if there was no phase for fine-tuning."""
        if not self.phases(strategy.train_epochs)[1].epochs:
            self.enter_phase(Phase("finetune", 0), model)

    def _largest(self, model: MaskedModel, owned: dict[str, Tensor]) -> dict[str, Tensor]:
        left = max(1, self.n_tasks - len(model.task_keys))
        weights = dict(model.net.named_parameters())
        found = {}
        for name, taken in owned.items():
            free = int((~taken).sum())
            size = weights[name].detach().abs().masked_fill(taken, -1.0)
            found[name] = top_k_mask(size + 1, max(1, free // left)) & ~taken  # owned weights rank last, with size 0
        return found


@register("packnet-norm")
class PackNet(SubnetworkStrategy):
    """PackNet for any module."""

    def __init__(self, model: nn.Module, *, n_tasks: int = 5, optimizer: Any = None, **arguments: Any) -> None:
        method = PackNetPlugin(n_tasks=n_tasks, schedule="cosine" if optimizer is None else "constant")
        arguments.setdefault("init", "keep")
        super().__init__(model=model, method=method, optimizer=optimizer, default_lr=1e-3, **arguments)


def main() -> None:
    """Learn five tasks in a network with BatchNorm."""
    from digits import learn  # the file digits.py in this folder

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2),
    )  # fmt: skip
    strategy = learn(methods()["packnet-norm"], net, description=__doc__, epochs=8, per_task="norm")
    owned = sum(c.owned for c in strategy.model.capacity().values())
    print(f"{owned} of {sum(c.total for c in strategy.model.capacity().values())} weights owned after five tasks")


if __name__ == "__main__":
    main()
