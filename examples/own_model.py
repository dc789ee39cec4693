"""Your own model: a convolutional network with BatchNorm learns several tasks without any change to its code."""

import argparse

import torch
from digits import stream
from torch import nn

from avalanche_supermask import CachedTensors, SupSup

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=4, help="a task (default %(default)s)")
options = parser.parse_args()


class MyNet(nn.Module):
    """A usual network, without any code for tasks or masks."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.classify = nn.Linear(128, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of images."""
        return self.classify(self.features(x))


tasks, net = stream(), MyNet()
strategy = SupSup(
    net, density=0.2, mask_lr=0.02, train_epochs=options.epochs, train_mb_size=32, plugins=[CachedTensors()],
    evaluator=None, seed=0,
)  # fmt: skip
for experience in tasks.train_stream:
    strategy.train(experience)

model = strategy.model.eval()
plain = model.export(0)  # a plain MyNet with the weights of task 0; it has no masks and does not need this package
images = torch.stack([tasks.test_stream[0].dataset[i][0] for i in range(8)])
with torch.no_grad():
    same = torch.equal(plain(images), model(images, 0))
print(f"{type(plain).__name__} of task 0 answers like the masked model: {same}")
for layer, use in model.capacity().items():
    print(f"{layer:20} {use.owned:6} of {use.total:6} weights used, {use.reused:6} by two tasks or more")
