"""The rows of the baselines: Avalanche's replay methods, streaming LDA, and training on all tasks at once."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.training.plugins import ReplayPlugin
from avalanche.training.supervised import DER, ER_ACE, ICaRL, StreamingLDA
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.optim import Adam

from avalanche_supermask import CachedTensors
from benchmarks.practice.class_incremental.scoring import accuracy
from benchmarks.practice.class_incremental.settings import Setting
from benchmarks.practice.class_incremental.streams import Tasks, benchmark

__all__ = ["BASELINES", "baseline"]

BASELINES = ("joint", "joint-linear", "der", "replay", "er-ace", "icarl", "slda")


def baseline(name: str, setting: Setting, train: Tasks, test: Tasks, *, lr: float) -> dict[str, Any]:
    """Return the row of one baseline; its mini-batches from memory are as large as the new ones."""
    net, width = setting.network(), setting.widths[0]
    memory, sample = setting.memory, setting.sample_bytes
    common: dict[str, Any] = {"train_mb_size": setting.batch_size, "train_epochs": setting.epochs, "evaluator": None,
                              "eval_mb_size": 1024, "plugins": [CachedTensors()]}  # fmt: skip
    if name == "joint-linear":
        net, common["train_epochs"] = nn.Linear(width, setting.classes), 30
    network_bytes = 4 * sum(p.numel() for p in net.parameters())
    optimizer, criterion = Adam(net.parameters(), lr=lr), nn.CrossEntropyLoss()
    replayed = {"mem_size": memory, "batch_size_mem": setting.batch_size}
    if name in ("joint", "joint-linear"):
        strategy: Any = SupervisedTemplate(model=net, optimizer=optimizer, criterion=criterion, **common)
        kept = sum(len(y) for _, y in train) * sample
        train = [(torch.cat([x for x, _ in train]), torch.cat([y for _, y in train]))]
    elif name == "replay":
        common["plugins"].append(ReplayPlugin(mem_size=memory))
        strategy = SupervisedTemplate(model=net, optimizer=optimizer, criterion=criterion, **common)
        kept = memory * sample
    elif name == "er-ace":
        strategy = ER_ACE(model=net, optimizer=optimizer, **replayed, **common)
        kept = memory * sample
    elif name == "der":
        strategy = DER(model=net, optimizer=optimizer, alpha=0.1, **replayed, **common)  # beta=0.5, so DER++
        kept = memory * (sample + 4 * setting.classes)
    elif name == "icarl":
        assert isinstance(net, nn.Sequential)
        body = net[:-1] if len(net) > 2 else nn.Flatten()
        strategy = ICaRL(
            feature_extractor=body, classifier=net[-1], optimizer=optimizer, memory_size=memory, buffer_transform=None,
            fixed_memory=True, **common,
        )  # fmt: skip
        kept = memory * sample + 4 * setting.classes * setting.widths[-1]
    elif name == "slda":
        strategy = StreamingLDA(
            slda_model=nn.Flatten(), criterion=criterion, input_size=width, num_classes=setting.classes, train_epochs=1,
            train_mb_size=max(len(y) for _, y in train), evaluator=None,  # It inverts a matrix at every mini-batch.
        )  # fmt: skip
        network_bytes, kept = 0, 4 * width * (width + setting.classes)
    else:
        raise ValueError(f"unknown baseline {name!r}; expected one of {', '.join(BASELINES)}")
    for experience in benchmark(train, test[: len(train)]).train_stream:
        strategy.train(experience)
    strategy.model.eval()
    answer = strategy.predict if name == "slda" else strategy.model
    return {
        "method": name,
        "accuracy": accuracy(answer, test),
        "bytes_per_task": kept / setting.tasks,
        "bytes_in_all": kept + network_bytes,
        "memory": memory if name in ("replay", "er-ace", "der", "icarl") else None,
        "lr": None if name == "slda" else lr,
    }
