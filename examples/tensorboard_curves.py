"""TensorBoard: record the accuracy and forgetting of every task, for SupSup and for plain training."""

import argparse
from pathlib import Path

import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.logging import TensorboardLogger
from avalanche.models import as_multitask
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from digits import network, stream

from avalanche_supermask import CachedTensors, SupSup, supermask_metrics

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=4, help="a task (default %(default)s)")
parser.add_argument("--logs", type=Path, default=Path("runs/example"), help="folder (default %(default)s)")
options = parser.parse_args()

tasks = stream()


def common(name: str) -> dict:
    """Return the arguments of a strategy that logs under a name."""
    evaluator = EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True), forgetting_metrics(experience=True, stream=True),
        supermask_metrics(), loggers=[TensorboardLogger(tb_log_dir=str(options.logs / name))],
    )  # fmt: skip
    return {
        "evaluator": evaluator, "train_epochs": options.epochs, "train_mb_size": 32, "plugins": [CachedTensors()],
    }  # fmt: skip


net = as_multitask(network(), "5")  # an output layer for each task
naive = Naive(model=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9), **common("naive"))
supsup = SupSup(network(), density=0.1, mask_lr=0.02, seed=0, **common("supsup"))
for strategy in (naive, supsup):
    for experience in tasks.train_stream:
        strategy.train(experience)
        strategy.eval(tasks.test_stream)
    for logger in strategy.evaluator.loggers:
        logger.writer.close()  # writes the remaining values to the file
print(f"tensorboard --logdir {options.logs}")
