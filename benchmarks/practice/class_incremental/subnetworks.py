"""The rows of this package's methods: one model, with several inference methods."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from avalanche_supermask import CachedTensors, methods
from avalanche_supermask.inference import Gaussian
from avalanche_supermask.inference.gathering import gather_statistics
from benchmarks.practice.class_incremental.calibration import Calibrated
from benchmarks.practice.class_incremental.scoring import accuracy, batches, inferred, novelty
from benchmarks.practice.class_incremental.settings import Setting
from benchmarks.practice.class_incremental.streams import Tasks, benchmark

__all__ = ["ours"]

BATCH = 128  # samples of a batch of one task, for the column of batches


def ours(
    method: str, setting: Setting, train: Tasks, test: Tasks, seed: int, *, novel: Tensor | None
) -> Iterator[dict[str, Any]]:
    """Train one model and yield one row per inference method."""
    strategy = methods()[method](
        setting.network(), seed=seed, task_key="experience", train_epochs=setting.epochs, evaluator=None,
        train_mb_size=setting.batch_size, plugins=[CachedTensors()], **setting.ours[method],
    )  # fmt: skip
    for experience in benchmark(train, test).train_stream:
        strategy.train(experience)
    model = strategy.model.eval()
    n = len(model.task_keys)
    given = statistics.fmean(accuracy(partial(model.forward_task, task), [data]) for task, data in enumerate(test))
    mask = sum(model.bytes_per_task().values()) / n
    yield {"method": method, "way": "given", "accuracy": given, "bytes_per_task": mask, "beside_the_mask": 0.0}
    for name, way in setting.ways.items():
        model.task_inference = way
        for task in model.task_keys:
            gather_statistics(model, task, [*batches(*train[task])])
        row = inferred(model, test)
        kept = sum(model.bytes_per_task().values()) / n
        if setting.in_batches:
            model.task_inference = replace(way, per="batch")
            row["accuracy_in_batches"] = accuracy(model, test, size=BATCH)
        if novel is not None:
            row["novelty_auroc"] = novelty(way, model, test, novel)
        yield {"method": method, "way": name, **row, "bytes_per_task": kept, "beside_the_mask": kept - mask}
        if way == Gaussian():
            draw = torch.Generator().manual_seed(seed)
            rows = [torch.randperm(len(y), generator=draw)[: setting.memory // n] for _, y in train]
            stored = [(x[chosen], y[chosen]) for (x, y), chosen in zip(train, rows, strict=True)]
            model.task_inference = Calibrated.on(way, model, stored)
            row = inferred(model, test)
            kept += setting.memory * setting.sample_bytes / n
            name = f"{name}, calibrated on {setting.memory} stored samples"
            yield {"method": method, "way": name, **row, "bytes_per_task": kept, "beside_the_mask": kept - mask}
