"""Compare ExSSNeT with EWC in one script: both have the same stream, network, epochs and evaluator."""

import argparse

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import as_multitask
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import EWC
from digits import network, stream
from torch import nn

from avalanche_supermask import CachedTensors, ExSSNeT

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=6, help="a task (default %(default)s)")
parser.add_argument("--strength", type=float, default=1e4, help="EWC's lambda (default %(default)s)")
options = parser.parse_args()

tasks = stream()


def common() -> dict:
    """Return the arguments that both strategies share."""
    return {
        "train_epochs": options.epochs, "train_mb_size": 32, "plugins": [CachedTensors()],
        "evaluator": EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]),
    }  # fmt: skip


torch.manual_seed(0)
net = as_multitask(network(), "5")  # an output layer for each task
ewc = EWC(
    model=net, optimizer=torch.optim.Adam(net.parameters(), lr=1e-3), criterion=nn.CrossEntropyLoss(),
    ewc_lambda=options.strength, **common(),
)  # fmt: skip
exssnet = ExSSNeT(network(), density=0.2, mask_lr=0.02, weight_lr=0.01, seed=0, **common())

for name, strategy in (("EWC", ewc), ("ExSSNeT", exssnet)):
    first_task = []
    for experience in tasks.train_stream:
        strategy.train(experience)
        results = strategy.eval(tasks.test_stream)
        accuracies = [value for key, value in results.items() if key.startswith("Top1_Acc_Exp/")]
        first_task.append(accuracies[0])
    print(
        f"{name:8} average {sum(accuracies) / len(accuracies):.3f}, first task over time:",
        *map("{:.3f}".format, first_task),
    )
