"""Networks of many kinds with two outputs, for the tests and for timings over all of them.

`SMALL` ones take images of `SMALL_SHAPE` and train within seconds; `LARGE` ones take images of `LARGE_SHAPE`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import ConvNeXt, VisionTransformer, mobilenet_v3_small, resnet18
from torchvision.models.convnext import CNBlockConfig

__all__ = ["LARGE", "LARGE_SHAPE", "SMALL", "SMALL_SHAPE", "ResNet", "lenet", "mlp"]


def mlp(width: int = 24, outputs: int = 2) -> nn.Sequential:
    """Return an MLP with two hidden layers."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(36, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, outputs),
    )


def lenet() -> nn.Sequential:
    """Return a convolution, a pooling layer and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 16), nn.ReLU(),
        nn.Linear(16, 2),
    )  # fmt: skip


class ResNet(nn.Module):
    """A residual network with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.bn1(self.stem(x)).relu()
        x = (x + self.bn2(self.conv(x))).relu()
        return self.fc(x.mean(dim=(2, 3)))


class Transformer(nn.Module):
    """One encoder layer whose tokens are the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.position = nn.Parameter(torch.randn(1, 6, 16) * 0.1)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.fc = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.fc(self.block(self.embed(x.squeeze(1)) + self.position).mean(dim=1))


class Recurrent(nn.Module):
    """An LSTM that reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 16, batch_first=True)
        self.fc = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.fc(self.lstm(x.squeeze(1))[0][:, -1])


class Causal(nn.Module):
    """A block as in GPT-2, on a sequence of tokens that are computed from the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(16, 24), nn.Embedding(64, 24)
        self.norm1, self.norm2 = nn.LayerNorm(24), nn.LayerNorm(24)
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
        self.head = nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        ids = (x[:, 0, ::4, ::4].flatten(1) * 4).long().clamp(0, 15)
        h = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=x.device))
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], device=x.device, dtype=h.dtype)
        n = self.norm1(h)
        h = h + self.attention(n, n, n, attn_mask=mask, need_weights=False)[0]
        h = h + self.mlp(self.norm2(h))
        return self.head(h[:, -1])


SMALL_SHAPE = (1, 6, 6)
SMALL: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "lenet": lenet,
    "resnet": ResNet,
    "transformer": Transformer,
    "lstm": Recurrent,
}

LARGE_SHAPE = (3, 32, 32)
LARGE: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: resnet18(num_classes=2),
    "mobilenet_v3": lambda: mobilenet_v3_small(num_classes=2),
    "vit": lambda: VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=2),
    "convnext": lambda: ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=2),
    "causal": Causal,
}
