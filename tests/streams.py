"""Small streams and networks for the tests: they need no download and train within seconds."""

import torch
from avalanche.benchmarks import tensors_benchmark
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

SHAPE = (1, 6, 6)


def class_stream(n_tasks=3, *, task_labels=None, n=48, n_classes=2, seed=0):
    """Return a stream whose tasks have different random class prototypes with noise; labels start from 0."""
    generator = torch.Generator().manual_seed(seed)
    labels = list(range(n_tasks)) if task_labels is None else task_labels

    def split(prototypes, size):
        y = torch.arange(size) % n_classes
        noise = torch.randn((size, *SHAPE), generator=generator)
        return prototypes[y] + 0.7 * noise, y

    prototypes = [torch.randn((n_classes, *SHAPE), generator=generator) for _ in range(n_tasks)]
    return tensors_benchmark(
        train_tensors=[split(p, n) for p in prototypes],
        test_tensors=[split(p, n) for p in prototypes],
        task_labels=labels,
    )


def mlp(width=24, outputs=2):
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(36, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, outputs),
    )


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 16), nn.ReLU(),
        nn.Linear(16, 2),
    )  # fmt: skip


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        x = self.bn1(self.stem(x)).relu()
        x = (x + self.bn2(self.conv(x))).relu()
        return self.fc(x.mean(dim=(2, 3)))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.position = nn.Parameter(torch.randn(1, 6, 16) * 0.1)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.fc = nn.Linear(16, 2)

    def forward(self, x):
        return self.fc(self.block(self.embed(x.squeeze(1)) + self.position).mean(dim=1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 16, batch_first=True)
        self.fc = nn.Linear(16, 2)

    def forward(self, x):
        return self.fc(self.lstm(x.squeeze(1))[0][:, -1])


class TiedEmbedding(nn.Module):
    """A network from tokens to tokens; embedding and output layer share one matrix, with a Conv1d between them."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.tokens.weight

    def forward(self, x):
        ids = (x.flatten(1) > 0).long().cumsum(1) % 11
        return self.out(self.conv(self.tokens(ids).transpose(1, 2)).mean(dim=2))


class RMSNorm(nn.Module):
    """A custom norm, as in Llama-like repositories."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Stranger(nn.Module):
    """A network with padded tokens, ``weight_norm``, a custom norm, a frozen layer and a slash in a name."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(11, 12, padding_idx=0)
        self.frozen = nn.Linear(12, 12).requires_grad_(False)
        self.blocks = nn.ModuleDict({"in/out": weight_norm(nn.Linear(12, 16))})
        self.norm = RMSNorm(16)
        self.fc = nn.Linear(16, 2)

    def forward(self, x):
        ids = (x.flatten(1) > 0).long().cumsum(1) % 11
        h = self.frozen(self.tokens(ids)).relu()
        return self.fc(self.norm(self.blocks["in/out"](h).relu()).mean(dim=1))


NETWORKS = {
    "mlp": mlp,
    "lenet": lenet,
    "resnet": ResNet,
    "transformer": Transformer,
    "lstm": Recurrent,
}


def inputs(n=16, seed=1):
    return torch.randn((n, *SHAPE), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def outputs(model, x, label):
    was_training = model.training
    model.eval()
    out = model(x, label).clone()
    model.train(was_training)
    return out


def train_all(strategy, stream, after_task=None):
    for experience in stream.train_stream:
        strategy.train(experience)
        if after_task is not None:
            after_task(experience.current_experience)
    return strategy
