"""First steps: learn five tasks in one network, and check that none of them is forgotten."""

import argparse

from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.logging import InteractiveLogger
from avalanche.training.plugins import EvaluationPlugin
from digits import network, stream

from avalanche_supermask import CachedTensors, ExSSNeT, supermask_metrics

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=6, help="a task, both phases included (default %(default)s)")
parser.add_argument("--density", type=float, default=0.2, help="fraction of weights a task keeps (default %(default)s)")
options = parser.parse_args()

tasks = stream()
evaluator = EvaluationPlugin(
    accuracy_metrics(experience=True, stream=True),
    forgetting_metrics(stream=True),
    supermask_metrics(drift=True, memory=True),
    loggers=[InteractiveLogger()],
)
strategy = ExSSNeT(
    network(), density=options.density, mask_lr=0.02, weight_lr=0.01, train_epochs=options.epochs, train_mb_size=32,
    evaluator=evaluator, plugins=[CachedTensors()], seed=0,
)  # fmt: skip
for experience in tasks.train_stream:
    strategy.train(experience)
    results = strategy.eval(tasks.test_stream)

accuracies = [value for name, value in results.items() if name.startswith("Top1_Acc_Exp/")]
print(f"\naverage accuracy {sum(accuracies) / len(accuracies):.3f}")
print(f"bytes stored for each task: {strategy.model.bytes_per_task()}")
print(f"largest change of any old output: {evaluator.get_last_metrics()['OutputDrift/train_phase/train_stream']}")
