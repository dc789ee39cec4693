"""Unknown task ids: at test, the model infers from an image which of five pixel permutations it has."""

import argparse

from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from digits import network, permuted

from avalanche_supermask import CachedTensors, SupSup, supermask_metrics
from avalanche_supermask.inference import OneShot

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=6, help="a task (default %(default)s)")
parser.add_argument("--outputs", type=int, default=50, help="ten are real, the rest superfluous (default %(default)s)")
options = parser.parse_args()

tasks = permuted()
strategy = SupSup(
    network(options.outputs), density=0.5, mask_lr=0.02, train_epochs=options.epochs, train_mb_size=32,
    plugins=[CachedTensors()], seed=0, init="signed_constant",  # with scaled constants, outputs tell less about tasks
    evaluator=EvaluationPlugin(accuracy_metrics(stream=True), supermask_metrics(inference=True), loggers=[]),
)  # fmt: skip
for experience in tasks.train_stream:
    strategy.train(experience)

for name, how in {"given": "given", "entropy": "entropy", "one-shot, G": OneShot(objective="G", classes=10)}.items():
    strategy.model.task_inference = how
    results = strategy.eval(tasks.test_stream)
    accuracies = [value for key, value in results.items() if key.startswith("Top1_Acc_Stream/")]
    ids = [value for key, value in results.items() if key.startswith("TaskIdAccuracy/")]
    right = f", right task {sum(ids) / len(ids):.3f}" if name != "given" else ""
    print(f"{name:12} accuracy {sum(accuracies) / len(accuracies):.3f}{right}")
