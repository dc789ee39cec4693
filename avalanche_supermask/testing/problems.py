"""The small problems on which a method is checked: a stream, networks and optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from avalanche.benchmarks import tensors_benchmark
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

__all__ = ["NETWORKS", "OPTIMIZERS", "SHAPE", "small_stream"]

SHAPE = (1, 6, 6)


def small_stream(tasks: int = 8, *, samples: int = 32, seed: int = 0) -> Any:
    """Return an Avalanche benchmark of easy tasks with images ``(1, 6, 6)`` of two classes.

    An image is the prototype of its class with added noise. The classes of every task are 0 and 1.

    Args:
        tasks: number of tasks (default 8); their task labels count from 0.
        samples: number of samples per task (default 32); the test data are the same as the training data.
        seed: seed of the prototypes and the noise (default 0).

    Example:
        >>> len(small_stream(3).train_stream)
        3
    """
    generator = torch.Generator().manual_seed(seed)

    def task() -> tuple[Tensor, Tensor]:
        y = torch.arange(samples) % 2
        prototypes = torch.randn((2, *SHAPE), generator=generator)
        return prototypes[y] + 0.5 * torch.randn((samples, *SHAPE), generator=generator), y

    data = [task() for _ in range(tasks)]
    return tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=list(range(tasks)))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def _batchnorm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16),
        nn.ReLU(), nn.Flatten(), nn.Linear(64, 2),
    )  # fmt: skip


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(6, 2, 16, dropout=0.1, batch_first=True)
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.block(x.squeeze(1)).mean(dim=1))  # type: ignore[no-any-return]


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 12, batch_first=True)
        self.out = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x.squeeze(1))[0][:, -1])  # type: ignore[no-any-return]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": _mlp,
    "batchnorm": _batchnorm,
    "attention": _Attention,
    "recurrent": _Recurrent,
}
"""Networks with which a method is checked; each takes images ``(batch, 1, 6, 6)`` and has two outputs."""


def _two_groups(net: nn.Module) -> Optimizer:
    first, *rest = net.parameters()
    groups: list[dict[str, Any]] = [{"params": [first], "lr": 0.1}, {"params": rest}]
    return SGD(groups, lr=0.05, momentum=0.9, weight_decay=1e-2)


OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer | None]] = {
    "default": lambda net: None,
    "adamw": lambda net: AdamW(net.parameters(), lr=0.01, weight_decay=0.1),
    "two groups": _two_groups,
}
"""Optimizers with which a method is checked: the method's default, AdamW with weight decay, and SGD with two groups."""
