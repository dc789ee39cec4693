"""Sparse fine-tuning of a pretrained network: every task changes 5 % of its weights, and is saved in a small file.

The script needs no download: it first trains a small convolutional network on upright digits, and reads it back from a
file. Networks of torchvision or timm are used in the same way: build the network without weights, and load its state
from a local file.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from avalanche.benchmarks import tensors_benchmark
from sklearn.datasets import load_digits
from torch import nn

from avalanche_supermask import CachedTensors, SparseFineTuning, load_task, save_task
from avalanche_supermask.pretrained import classifier

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=10, help="per task (default %(default)s)")
options = parser.parse_args()

CHANGES = {
    "turned": lambda x: x.rot90(1, (2, 3)),
    "negative": lambda x: 1 - x,
    "mirrored": lambda x: x.flip(3),
}


def network(outputs: int) -> nn.Module:
    """Return a network of two convolutions with BatchNorm and an output layer."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(24, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(192, outputs),
    )  # fmt: skip


torch.manual_seed(0)
folder = Path(tempfile.mkdtemp())
digits = load_digits()
x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
y = torch.tensor(digits.target, dtype=torch.long)

# This part stands for somebody who pretrains a network and publishes its weights.
net = network(10)
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for _ in range(5):
    for rows in torch.randperm(1200).split(32):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
torch.save(net.state_dict(), folder / "weights.pth")

# Three statements use the weights: they make a network, load its weights and make a strategy.
net = network(10)
net.load_state_dict(torch.load(folder / "weights.pth", weights_only=True))
strategy = SparseFineTuning(
    classifier(net, 10), density=0.05, train_epochs=options.epochs, train_mb_size=32, plugins=[CachedTensors()],
    evaluator=None, seed=0,
)  # fmt: skip

stream = tensors_benchmark(
    train_tensors=[(change(x[:1200]), y[:1200]) for change in CHANGES.values()],
    test_tensors=[(change(x[1200:]), y[1200:]) for change in CHANGES.values()],
    task_labels=[*range(len(CHANGES))],
)
for experience in stream.train_stream:
    strategy.train(experience)

model = strategy.model.eval()
with torch.no_grad():
    for key, (name, change) in enumerate(CHANGES.items()):
        answers = model(change(x[1200:]), key).argmax(dim=1)
        save_task(model, key, folder / f"{name}.safetensors")
        size = (folder / f"{name}.safetensors").stat().st_size
        print(f"{name}: accuracy {(answers == y[1200:]).float().mean():.3f}, {size} bytes")
    print(f"{strategy.tasks_left} more tasks fit")

    # A colleague with the same weights loads one of the files.
    other = SparseFineTuning(classifier(net, 10), density=0.05, evaluator=None, seed=0).model.eval()
    key = load_task(other, folder / "mirrored.safetensors")
    print("the loaded task answers alike:", torch.equal(other(x, key), model(x, key)))
