"""Small streams and networks for the tests: they need no download and train within seconds."""

import torch
from avalanche.benchmarks import tensors_benchmark
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from benchmarks.lib.assorted_networks import SMALL as NETWORKS
from benchmarks.lib.assorted_networks import SMALL_SHAPE as SHAPE
from benchmarks.lib.assorted_networks import ResNet, lenet, mlp

__all__ = [
    "NETWORKS",
    "ResNet",
    "Stranger",
    "TiedEmbedding",
    "class_stream",
    "inputs",
    "lenet",
    "mlp",
    "outputs",
    "train_all",
]


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
