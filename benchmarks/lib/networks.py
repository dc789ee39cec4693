"""The networks of the leaderboard, with a shared output layer, one head per task, or one network per task."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from avalanche.models import MultiHeadClassifier, MultiTaskModule
from torch import Tensor, nn

from benchmarks.lib.image_data import DEVIATION, MEAN

__all__ = ["MultiHead", "Separate", "SlimResNet18", "bfloat16_is_fast", "lenet5", "mlp"]


def mlp(inputs: int, hidden: Sequence[int], outputs: int, *, bias: bool = True) -> nn.Sequential:
    """Return a fully connected ReLU network on flattened inputs; 784-300-100-10 is the LeNet of the papers."""
    layers: list[nn.Module] = [nn.Flatten()]
    widths = [inputs, *hidden]
    for fan_in, fan_out in zip(widths, hidden, strict=False):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs, bias=bias))


def lenet5(outputs: int) -> nn.Sequential:
    """Return the LeNet of WSN's table (Kang et al. 2022) for images ``(batch, 3, 32, 32)``; no layer has a bias."""
    return nn.Sequential(
        nn.Conv2d(3, 20, 5, padding=2, bias=False), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1),
        nn.Conv2d(20, 50, 5, padding=2, bias=False), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1),
        nn.Flatten(), nn.Linear(3200, 800, bias=False), nn.ReLU(), nn.Linear(800, 500, bias=False), nn.ReLU(),
        nn.Linear(500, outputs, bias=False),
    )  # fmt: skip


class MultiHead(MultiTaskModule):
    """A network whose output layer is replaced by one linear head per task; a head is created at the task's first use.

    Args:
        net: a sequence that ends in its output layer, or a module with an output layer ``fc``; it is changed in place.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        if isinstance(net, nn.Sequential):
            self.body, last = net[:-1], net[-1]
        else:
            self.body, last = net, net.fc
            net.fc = nn.Identity()
        self.classifier = MultiHeadClassifier(last.in_features, initial_out_features=last.out_features)

    def forward(self, x: Tensor, task_labels: Tensor) -> Tensor:
        """Return the logits, each computed by the head of the sample's task label."""
        out: Tensor = self.classifier(self.body(x), task_labels)
        return out


class Separate(MultiTaskModule):
    """One network per task, created at the task's first use; tasks share nothing, so nothing is forgotten.

    Args:
        make: creates a network.
        outputs: number of outputs of a network.
    """

    def __init__(self, make: Callable[[], nn.Module], outputs: int) -> None:
        super().__init__()
        self._make = make
        self.networks = nn.ModuleDict({"0": make()})
        self.max_class_label = outputs

    def adaptation(self, experience: Any) -> None:
        """Create the networks of the experience's new task labels."""
        super().adaptation(experience)
        for label in set(experience.task_labels):
            if str(label) not in self.networks:
                self.networks[str(label)] = self._make()

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        """Return the logits of one task's network."""
        out: Tensor = self.networks[str(task_label)](x)
        return out


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(fan_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or fan_in != fan_out:
            self.shortcut = nn.Sequential(nn.Conv2d(fan_in, fan_out, 1, stride, bias=False), nn.BatchNorm2d(fan_out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        result: Tensor = (out + self.shortcut(x)).relu()
        return result


def bfloat16_is_fast() -> bool:
    """Return whether this machine computes in bfloat16 faster than in float32.

    Without AVX-512, a convolution in bfloat16 took 15 times the time of one in float32.
    """
    return torch.cuda.is_available() or torch.backends.cpu.get_cpu_capability().startswith("AVX512")


class SlimResNet18(nn.Module):
    """ResNet-18 for 3x32x32 images; with ``width=20``, the papers' network for SplitCIFAR100.

    Args:
        outputs: number of logits.
        width: number of channels of the first stage (default 20).
        bfloat16: whether to compute in bfloat16 with the channels last (default False), which is faster on processors
            with instructions for bfloat16; parameters remain float32.
    """

    def __init__(self, outputs: int, width: int = 20, *, bfloat16: bool = False) -> None:
        super().__init__()
        self._in_bfloat16 = bfloat16
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION)[:, None, None], persistent=False)
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        blocks: list[nn.Module] = []
        for stage, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
            blocks += [_Block(fan_in, fan_out, 1 if stage == 0 else 2), _Block(fan_out, fan_out, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(8 * width, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 logits of images ``(batch, 3, 32, 32)``; uint8 images are standardised first."""
        if x.dtype == torch.uint8:
            x = (x.float() / 255 - self.mean) / self.deviation
        if self._in_bfloat16:
            with torch.autocast(x.device.type, torch.bfloat16):
                return self._logits(x.contiguous(memory_format=torch.channels_last)).float()
        return self._logits(x)

    def _logits(self, x: Tensor) -> Tensor:
        x = self.blocks(self.bn(self.stem(x)).relu())
        out: Tensor = self.fc(x.mean(dim=(2, 3)))
        return out
