"""Functions that the processes of a group run in the tests: learn a stream together, and return the results."""

import copy

import torch
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin
from torch.optim import SGD

from avalanche_supermask import CachedTensors, RestoreBest, supermask_metrics
from avalanche_supermask.distributed.digests import digest
from avalanche_supermask.model import sparse_training
from tests.building import build
from tests.streams import NETWORKS, class_stream, inputs, outputs

OPTIONS = {
    "supsup": {},
    "exssnet": {},
    "exssnet+kkt": {"kkt": "knn_all", "kkt_neighbours": 5, "kkt_share": 1.0},
    "exssnet+norm": {"per_task": "norm"},
    "exssnet+best": {"train_epochs": 4, "weight_epochs": 2},  # with RestoreBest
    "exssnet+sparse": {"train_epochs": 4, "weight_epochs": 2},  # the weights of linear layers train in sparse form
    "clnp": {"finetune_epochs": 1, "train_epochs": 3},
    "clnp+search": {"l1_search": (1e-4, 1e-2)},
    "impresslearn": {},
    "impresslearn+homogeneous": {"basis": "homogeneous"},
    "sparse_finetuning": {},
    "sparse_finetuning+change": {"choose": "change"},
    "ssnet": {},
}


def evaluator():
    """Return an evaluator with Avalanche's common metrics and all metrics of this package."""
    return EvaluationPlugin(
        accuracy_metrics(epoch=True, experience=True, stream=True),
        loss_metrics(epoch=True, experience=True, stream=True), supermask_metrics(), loggers=[],
    )  # fmt: skip


def strategy_of(name, network, **options):
    torch.manual_seed(0)
    method = name.partition("+")[0]
    best = [RestoreBest(share=0.2)] if name.endswith("+best") else []
    settings = {"seed": None, "plugins": [*best, CachedTensors()], **OPTIONS.get(name, {}), **options}
    made = build(method, NETWORKS[network](), **settings)
    if name.endswith("+sparse"):
        sparse_training.SMALLEST, sparse_training.DENSEST = 1, 1.0
        made.model.execution = "auto"
    return made


def learn(rank, name, network, options=None, n_tasks=3, **stream):
    """Learn a stream; return digests of the model, drifts of old tasks, and metrics, after each task."""
    options = {"evaluator": evaluator(), **(options or {})}
    return observe(strategy_of(name, network, **options), class_stream(n_tasks, n=50, **stream))


def observe(strategy, stream, **arguments):
    found = {"digests": [], "drift": [], "metrics": [], "weights": []}
    x, recorded = inputs(), {}
    for experience in stream.train_stream:
        strategy.train(experience, **arguments)
        found["metrics"].append(strategy.eval(stream.test_stream[: experience.current_experience + 1]))
        found["digests"].append(digest(strategy.model.state_dict()))
        keys = strategy.model.task_keys
        recorded[keys[-1]] = outputs(strategy.model, x, keys[-1])
        found["drift"].append(
            max(float((outputs(strategy.model, x, k) - before).abs().max()) for k, before in recorded.items())
        )
        found["weights"].append(copy.deepcopy(strategy.model.effective_weights(keys[-1])))
    found["entropies"] = [task.entropy for task in strategy.model.subnetworks.tasks.values()]
    found["keys"] = keys
    return found


def plain_sgd(net):
    return SGD(net.parameters(), lr=0.05)
