"""Runs one cell: one method on one stream with one seed. A cell has its own process and its own JSON file."""

from __future__ import annotations

import json
import random
import statistics
import time
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.logging import TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin

from avalanche_supermask import CachedTensors, MaskedModel, methods, supermask_metrics
from avalanche_supermask.inference import by_name
from benchmarks.lib.accuracy import accuracy
from benchmarks.lib.provenance import provenance
from benchmarks.lib.streams import build_stream, stream_of, with_validation
from leaderboard import SETTINGS
from leaderboard.methods import build_strategy, parse_row, protocol, rows
from leaderboard.resources import free_share, mask_overlap, peak_memory_bytes
from leaderboard.rows import Setup
from leaderboard.scores import summarise
from leaderboard.storage_bytes import kept_bytes
from leaderboard.tensorboard_summary import write_summary

__all__ = ["Cell", "run_cell", "settings_of"]


@dataclass(frozen=True)
class Cell:
    """The configuration of one run, from which the path of its result follows.

    Attributes:
        stream: name of the stream.
        method: name of the row, options included.
        seed: seed of the stream, the network and the batches.
        settings: all settings of the method.
        epochs: epochs per task; None: the stream's number.
        tasks: number of tasks, counted from the first; None: all.
        validation: share of the training data that is held out and replaces the test data; 0 for a real result.
    """

    stream: str
    method: str
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    tasks: int | None = None
    validation: float = 0.0

    @property
    def path(self) -> Path:
        """Path of the result file, relative to the output folder."""
        return Path(self.stream.replace(":", ".")) / self.method / f"seed{self.seed}.json"

    def arguments(self, device: str) -> list[str]:
        """Return the arguments of the command that runs this cell alone."""
        words = ["run", "--streams", self.stream, "--methods", self.method, "--seeds", str(self.seed)]
        source = rows()[parse_row(self.method)[0]].imported_from
        words += ["--import", source] if source else []
        words += ["--epochs", str(self.epochs)] if self.epochs else []
        words += ["--tasks", str(self.tasks)] if self.tasks else []
        words += ["--device", device] if device != "cpu" else []
        return words + ([] if stream_of(self.stream).offline else ["--dataset-root", "DIR"])

    def config(self) -> dict[str, Any]:
        """Return everything that determines the result, in the form in which JSON restores it."""
        spec = stream_of(self.stream)
        config = {
            **asdict(self),
            "epochs": self.epochs or spec.epochs,
            "tasks": self.tasks or spec.tasks,
            "batch_size": spec.batch_size,
            "network": spec.shape,
            **({"sample": spec.sample} if spec.sample else {}),
        }
        result: dict[str, Any] = json.loads(json.dumps(config))
        return result


def settings_of(stream: str, row: str) -> dict[str, Any]:
    """Return the settings of a row.

    Later sources override earlier ones: the defaults of the method, the settings that the search chose for the row or
    else for its method, the stream's protocol, and the settings that the row's name fixes.
    """
    method, fixed = parse_row(row)
    if fixed.get("at_default"):
        return {**({} if method in methods() else rows()[method].defaults), **protocol(stream, method), **fixed}
    chosen = json.loads(SETTINGS.read_text()) if SETTINGS.exists() else {}
    found_on = {**chosen.get(stream_of(stream).settings_from, {}), **chosen.get(stream, {})}
    searched_as = "exssnet" if method == "ssnet" else method  # ssnet is the control of exssnet
    # The first of these names that was searched gives the settings. The last two cover rows without an own search.
    pinned = f"{searched_as}@{row.partition('@')[2]}"
    default = f"{searched_as}@{rows()[searched_as].defaults.get('density')}"
    names = (row, pinned, searched_as, default)
    found = next((found_on[name] for name in names if name in found_on), {}).get("settings", {})
    return {**rows()[method].defaults, **found, **protocol(stream, method), **fixed}


def run_cell(cell: Cell, *, dataset_root: Path | None, tb_dir: Path | None, device: str = "cpu") -> dict[str, Any]:
    """Train and test one cell.

    Args:
        cell: what to run.
        dataset_root: where torchvision keeps its data.
        tb_dir: folder for TensorBoard logs; None writes no logs.
        device: device of the computation. It is not part of the configuration, but the result's machine names it.

    Returns:
        The result that the file will hold.

    Raises:
        ValueError: the benchmark of the stream has fewer tasks than the stream.
    """
    torch.set_num_threads(1)  # one core per cell keeps times comparable
    spec = stream_of(cell.stream).at(dataset_root)
    benchmark = build_stream(cell.stream, seed=cell.seed, dataset_root=dataset_root)
    have = [len(benchmark.train_stream), len(benchmark.test_stream)]
    if min(have) < spec.tasks:
        raise ValueError(
            f"stream {cell.stream!r} has tasks={spec.tasks}, but its benchmark has {have[0]} training and {have[1]} "
            "test experiences; make the numbers equal"
        )
    if cell.validation:
        benchmark = with_validation(benchmark, share=cell.validation, seed=cell.seed)
    # The seeds are set after the benchmark, because building one may reset the global random state.
    random.seed(cell.seed)
    np.random.seed(cell.seed)
    torch.manual_seed(cell.seed)

    evaluator = EvaluationPlugin(
        accuracy_metrics(epoch=True, experience=True, stream=True),
        loss_metrics(epoch=True, experience=True),
        forgetting_metrics(experience=True, stream=True),
        supermask_metrics(),
        loggers=[TensorboardLogger(tb_log_dir=str(tb_dir))] if tb_dir else [],
        strict_checks=False,
    )
    tasks = cell.tasks or spec.tasks
    common = {
        "train_mb_size": spec.batch_size,
        "train_epochs": cell.epochs or spec.epochs,
        "eval_mb_size": 1024,
        "device": device,
        "evaluator": evaluator,
        "plugins": [CachedTensors()],
    }
    method, _ = parse_row(cell.method)
    strategy = build_strategy(method, Setup(spec, cell.settings, common, cell.seed))
    train, test = benchmark.train_stream[:tasks], benchmark.test_stream[:tasks]

    matrix, free, train_seconds, train_cpu_seconds, eval_seconds, eval_cpu_seconds = [], [], 0.0, 0.0, 0.0, 0.0
    metrics: dict[str, Any] = {}
    for experience in [train] if method == "joint" else train:
        started, computed = time.perf_counter(), time.process_time()
        strategy.train(experience)
        trained, computed_until = time.perf_counter(), time.process_time()
        metrics = strategy.eval(test)
        matrix.append([_accuracy(metrics, task) for task in range(tasks)])
        free.append(free_share(strategy.model))
        train_seconds += trained - started
        train_cpu_seconds += computed_until - computed
        eval_seconds += time.perf_counter() - trained
        eval_cpu_seconds += time.process_time() - computed_until
    image = train[0].dataset[0][0]
    per_task, total = kept_bytes(
        strategy,
        spec,
        n_tasks=tasks,
        n_samples=sum(len(experience.dataset) for experience in train),
        sample_bytes=image.numel() * image.element_size() + 8,  # the label is an int64
    )
    _, drift = evaluator.get_all_metrics().get("OutputDrift/train_phase/train_stream", ([], [0.0]))
    result = {
        "method": cell.method,
        "stream": cell.stream,
        "seed": cell.seed,
        **summarise(matrix),
        "accuracy_matrix": matrix,
        "samples": [[len(experience.dataset) for experience in side] for side in (train, test)],  # training, then test
        "output_drift": max(drift),
        **_task_inference(metrics),
        **_in_batches(strategy.model, test),
        **_pruning(strategy),
        "bytes_per_task": per_task,
        **_selection_bytes(strategy.model),
        "bytes_total": total,
        "free_share": [share for share in free if share is not None],  # share of free weights after each task
        "mask_overlap": mask_overlap(strategy.model),
        "peak_memory_bytes": peak_memory_bytes(device),
        "train_seconds": round(train_seconds, 3),
        "train_cpu_seconds": round(train_cpu_seconds, 3),  # only of this process
        "eval_seconds": round(eval_seconds, 3),
        "eval_cpu_seconds": round(eval_cpu_seconds, 3),
        "config": cell.config(),
        **provenance("leaderboard", cell.arguments(device)),
    }
    for logger in evaluator.loggers:
        write_summary(logger.writer, result)
        logger.writer.close()
    return result


def _accuracy(metrics: dict[str, Any], task: int) -> float:
    ending = f"/Exp{task:03d}"
    found = [v for k, v in metrics.items() if k.startswith("Top1_Acc_Exp/eval_phase/") and k.endswith(ending)]
    return float(found[-1])


def _task_inference(metrics: dict[str, Any]) -> dict[str, float]:
    """Return how often the task was inferred correctly, and how often both task and class, averaged over all tasks.

    The result is empty where tasks are given.
    """
    names = {"task_id_accuracy": "TaskIdAccuracy/", "unshared_accuracy": "UnsharedAccuracy/"}
    found = {key: [v for name, v in metrics.items() if name.startswith(start)] for key, start in names.items()}
    return {key: sum(values) / len(values) for key, values in found.items() if values}


BATCH = 128  # samples of a batch of one task


def _in_batches(model: Any, test: Any) -> dict[str, float]:
    """Return the average accuracy if one task is inferred for each batch of 128 samples of one task.

    The result is empty where tasks are given, and for methods that infer no task of a batch.
    """
    way = by_name(model.task_inference) if isinstance(model, MaskedModel) else None
    if not is_dataclass(way) or isinstance(way, type) or not hasattr(way, "per"):
        return {}
    before, model.task_inference = model.task_inference, replace(way, per="batch")
    try:
        return {"batch_accuracy": statistics.fmean(accuracy(model, e, batch_size=BATCH) for e in test)}
    finally:
        model.task_inference = before


def _selection_bytes(model: Any) -> dict[str, Any]:
    """Return the bytes of each task's mask or coefficients, without norm statistics and heads."""
    return {"selection_bytes": model.bytes_per_task(private=False)} if isinstance(model, MaskedModel) else {}


def _pruning(strategy: Any) -> dict[str, Any]:
    """Return the pruning report of each task; empty for methods that do not prune units."""
    reports = next((p.reports for p in strategy.plugins if hasattr(p, "reports")), {})
    return {"pruning": {str(task): asdict(report) for task, report in reports.items()}} if reports else {}
