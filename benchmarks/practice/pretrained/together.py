"""Rows that train all tasks in one network: sparse fine-tuning, and masks that set weights to zero."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from avalanche.benchmarks import tensors_benchmark
from torch import nn

from avalanche_supermask import CachedTensors, SparseFineTuning, SupSup
from avalanche_supermask.model.heads import output_layer
from benchmarks.practice.pretrained.tasks import BATCH, Data, accuracy

__all__ = ["together"]


def strategy_of(row: str, net: nn.Module, *, lr: float | None, epochs: int, seed: int) -> Any:
    """Return the strategy of a row that trains all tasks in one network."""
    word, density, *choose = row.split(":")
    common: dict[str, Any] = {
        "density": float(density), "train_epochs": epochs, "train_mb_size": BATCH, "eval_mb_size": 100, "seed": seed,
        "evaluator": None, "plugins": [CachedTensors()],
    }  # fmt: skip
    if word == "sparse":
        return SparseFineTuning(net, lr=lr, choose=choose[0] if choose else "gradient", **common)
    head = output_layer(net).replace(".", r"\.") + r"\..*"
    return SupSup(
        net, init="keep", scores="magnitude", statistics="frozen", mask_lr=lr, own=[head],
        exclude=[r".*embeddings.*", r".*pooler.*"], **common,
    )  # fmt: skip


def together(row: str, net: nn.Module, tasks: Sequence[tuple[Data, Data]], **settings: Any) -> dict[str, Any]:
    """Train all tasks in turn in one network; return accuracies, forgetting, bytes and time."""
    stream = tensors_benchmark(
        train_tensors=[train for train, _ in tasks], test_tensors=[test for _, test in tasks],
        task_labels=[*range(len(tasks))],
    )  # fmt: skip
    strategy = strategy_of(row, net, **settings)
    model, after = strategy.model, []
    started = time.process_time()
    for key, experience in enumerate(stream.train_stream):
        strategy.train(experience)
        after.append(_of_task(model, key, tasks[key][1]))
    seconds = time.process_time() - started
    last = [_of_task(model, key, test) for key, (_, test) in enumerate(tasks)]
    masks = model.subnetworks.masks
    own = [sum(t.nbytes for t in model.subnetworks.task_private(key).values()) for key in model.task_keys]
    codes = [len(masks.row_code(model.subnetworks.tasks[key].slot)) for key in model.task_keys]
    values = [4 * sum(int(m.sum()) for m in model.task_mask(key).values()) for key in model.task_keys]
    has_values = row.startswith("sparse")
    return {
        "accuracies": last,
        "forgetting": statistics.fmean(a - b for a, b in zip(after, last, strict=True)),
        "bytes": statistics.fmean(a + b for a, b in zip(own, codes, strict=True)),
        "bytes_with_values": statistics.fmean(
            a + b + c * has_values for a, b, c in zip(own, codes, values, strict=True)
        ),
        "network_bytes": sum(w.nbytes for w in model.subnetworks.frozen.values()),
        "tasks_left": strategy.tasks_left if has_values else None,
        "cpu_seconds": seconds,
    }


def _of_task(model: Any, key: int, data: Data) -> float:
    model.eval()
    return accuracy(lambda x: model.forward_task(key, x), data)
