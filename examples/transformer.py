"""A small vision transformer: its attention layers and position embeddings are masked like any other weight."""

import argparse

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from digits import stream
from torch import nn

from avalanche_supermask import CachedTensors, ExSSNeT

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=12, help="a task (default %(default)s)")
options = parser.parse_args()


class ViT(nn.Module):
    """A vision transformer for sixteen patches of 2x2 pixels, with two attention blocks."""

    def __init__(self, width: int = 32, outputs: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, width))
        block = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.classify = nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of images ``(batch, 1, 8, 8)``."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.classify(self.blocks(tokens).mean(dim=1))


torch.manual_seed(0)
tasks = stream()
strategy = ExSSNeT(
    ViT(), density=0.5, per_task="norm", mask_lr=0.01, weight_lr=0.003, train_epochs=options.epochs,
    train_mb_size=32, plugins=[CachedTensors()], seed=0,
    evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]),
)  # fmt: skip
for experience in tasks.train_stream:
    strategy.train(experience)
results = strategy.eval(tasks.test_stream)
accuracies = [value for name, value in results.items() if name.startswith("Top1_Acc_Exp/")]
print("accuracy of each task:", *map("{:.3f}".format, accuracies))
