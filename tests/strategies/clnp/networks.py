"""Networks whose layers are connected in unusual ways, for images of shape (1, 6, 6)."""

import torch
from torch import nn
from torch.nn.functional import adaptive_max_pool2d, channel_shuffle, instance_norm


class Depthwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.dw, self.b = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1)
        self.fc = nn.Linear(16, 2)

    def forward(self, x):
        return self.fc(self.b(self.dw(self.a(x).relu()).relu()).relu().flatten(1))


class DepthwiseFirst(nn.Module):
    """The first layer is a depthwise convolution on four input channels."""

    def __init__(self):
        super().__init__()
        self.dw, self.b, self.fc = nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1), nn.Linear(8, 2)

    def forward(self, x):
        x = torch.cat([x, x.flip(2), x.flip(3), -x], dim=1)
        return self.fc(self.b(self.dw(x).relu()).relu().amax(dim=(2, 3)))


class Branches(nn.Module):
    """Two parallel convolutions are concatenated, twice: first for convolutions, then pooled for the output layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 6, 3)
        self.c, self.d = nn.Conv2d(10, 5, 3), nn.Conv2d(10, 3, 1)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        wide = torch.cat([self.a(x).relu(), self.b(x).relu()], dim=1)
        return self.fc(torch.cat([branch(wide).relu().amax(dim=(2, 3)) for branch in (self.c, self.d)], dim=1))


class FlatBranches(nn.Module):
    """Two outputs of different sizes are flattened before they are concatenated."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3)
        self.fc = nn.Linear(16 * 4 + 4 * 6, 2)

    def forward(self, x):
        a = self.a(x).relu()
        return self.fc(torch.cat([a.flatten(1), self.b(a).relu().flatten(1)], dim=1))


class ChannelsLast(nn.Module):
    """The outputs are flattened with the channels last."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(64, 2)

    def forward(self, x):
        return self.fc(self.conv(x).relu().permute(0, 2, 3, 1).flatten(1))


class Joined(nn.Module):
    """Two convolutions with an operation between them, which is selected by name."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.a, self.c = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8, affine=False)
        self.b, self.fc = nn.Conv2d({"input": 9, "dense": 16}.get(how, 8), 12, 3, padding=1), nn.Linear(48, 2)

    def forward(self, x):
        h = self.a(x).relu()
        joined = {
            "input": lambda: torch.cat([x, h], dim=1),
            "flip": lambda: h.flip(1),
            "roll": lambda: h.roll(3, 1),
            "shuffle": lambda: channel_shuffle(h, 4),
            "dense": lambda: torch.cat([h, self.c(h).relu()], dim=1),
            "split": lambda: torch.cat(h.split([5, 3], dim=1)[::-1], dim=1),
            "chunks": lambda: torch.cat([h[:, :4] * h[:, 4:].sigmoid(), self.c(h)[:, :4]], dim=1),
            "residual": lambda: (h + self.c(h)).relu(),
            "instance norm": lambda: instance_norm(h),
            "plain norm": lambda: self.norm(self.a(x)).relu(),
            "mean": lambda: h - h.mean(dim=1, keepdim=True),
        }[self.how]()
        return self.fc(adaptive_max_pool2d(self.b(joined).relu(), 2).flatten(1))


class Tied(nn.Module):
    """Two hidden layers share one weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.fc = nn.Linear(36, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 2)
        self.c.weight = self.b.weight

    def forward(self, x):
        return self.fc(self.c(self.b(self.a(x.flatten(1)).relu()).relu()).relu())


class TwoInputs(nn.Module):
    """One layer is called twice: first on the input, then on its own output."""

    def __init__(self):
        super().__init__()
        self.a, self.fc = nn.Linear(36, 36), nn.Linear(36, 2)

    def forward(self, x):
        return self.fc(self.a(self.a(x.flatten(1)).relu()).relu())
