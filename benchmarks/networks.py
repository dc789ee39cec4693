"""The networks of the leaderboard: one body, with a shared output layer or a head for each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from avalanche.models import MultiHeadClassifier, MultiTaskModule
from torch import Tensor, nn

__all__ = ["MultiHeadMLP", "SeparateMLPs", "mlp"]


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Fully connected ReLU network on flattened inputs; 784-300-100-10 is the papers' LeNet."""
    layers: list[nn.Module] = [nn.Flatten()]
    widths = [inputs, *hidden]
    for fan_in, fan_out in zip(widths, hidden, strict=False):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


class MultiHeadMLP(MultiTaskModule):
    """The same body with one linear head a task, of ``outputs`` units, made when its task is first met."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.body = mlp(inputs, hidden, outputs)[:-1]
        self.classifier = MultiHeadClassifier(hidden[-1], initial_out_features=outputs)

    def forward(self, x: Tensor, task_labels: Tensor) -> Tensor:
        """Logits under the heads of the task labels."""
        out: Tensor = self.classifier(self.body(x), task_labels)
        return out


class SeparateMLPs(MultiTaskModule):
    """A network of its own for every task, made when its task is first met: nothing shared, nothing forgotten."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        self._shape = (inputs, tuple(hidden), outputs)
        self.networks = nn.ModuleDict({"0": mlp(*self._shape)})
        self.max_class_label = outputs

    def adaptation(self, experience: Any) -> None:
        """Make the networks of tasks that are not known."""
        super().adaptation(experience)
        for label in set(experience.task_labels):
            if str(label) not in self.networks:
                self.networks[str(label)] = mlp(*self._shape)

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        """Logits under one task's network."""
        out: Tensor = self.networks[str(task_label)](x)
        return out
