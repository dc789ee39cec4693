"""Plots of accuracies, of the overlap of masks and of the use of weights; they return a matplotlib ``Figure``.

Accuracies come from a strategy whose evaluator has ``accuracy_metrics(experience=True)``, from a result of the
leaderboard (a dictionary or its JSON file), or from a matrix whose row t has the accuracies after task t. Overlap and
capacity come from a `MaskedModel` or a strategy; overlap can also come from a result of the leaderboard.

    figure = plots.forgetting({"EWC": "results/ewc/seed0.json", "ExSSNeT": strategy})
    figure.savefig("forgetting.png")
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from avalanche_supermask.model.masked_model import MaskedModel

__all__ = [
    "accuracies",
    "accuracy_curves",
    "accuracy_matrix",
    "accuracy_over_bytes",
    "capacity",
    "forgetting",
    "overlap",
]

MANY = 12  # with more tasks than this, the cells of a matrix show no numbers


def accuracies(source: Any) -> list[list[float]]:
    """Return the accuracy matrix that the plots show: row t is measured after task t, column i on task i.

    Args:
        source: a strategy, a result of the leaderboard (a dictionary or its JSON file), or the matrix itself.

    Returns:
        Accuracies in [0, 1].

    Raises:
        TypeError: the source is none of these.
        ValueError: the strategy's evaluator recorded no accuracies of single experiences.

    Example:
        >>> accuracies({"accuracy_matrix": [[0.9, 0.5], [0.9, 0.8]]})
        [[0.9, 0.5], [0.9, 0.8]]
    """
    if isinstance(source, (str, os.PathLike)):
        source = json.loads(Path(source).read_text())
    if isinstance(source, Mapping):
        source = source["accuracy_matrix"]
    if hasattr(source, "evaluator"):
        return _recorded(source.evaluator.get_all_metrics())
    if isinstance(source, Sequence) and source and isinstance(source[0], Sequence):
        return [[float(value) for value in row] for row in source]
    raise TypeError(f"expected a strategy, a result, a JSON file or an accuracy matrix; got {type(source).__name__}")


def accuracy_matrix(source: Any) -> Figure:
    """Plot the accuracy on every task (columns) after each task (rows).

    Args:
        source: a strategy, a result or a matrix (see `accuracies`).
    """
    return _heatmap(accuracies(source), xlabel="tested on task", ylabel="after task", title="accuracy")


def accuracy_curves(source: Any) -> Figure:
    """Plot one line per task: its accuracy from the time when it was learned.

    Args:
        source: a strategy, a result or a matrix (see `accuracies`).
    """
    figure, axes = _axes(xlabel="tasks learned", ylabel="accuracy")
    matrix = accuracies(source)
    for task in range(len(matrix)):
        axes.plot(
            range(task + 1, len(matrix) + 1), [row[task] for row in matrix[task:]], marker="o", label=f"task {task}"
        )
    axes.set_xticks(range(1, len(matrix) + 1))
    if len(matrix) <= MANY:
        axes.legend(fontsize="small")
    return figure


def forgetting(sources: Mapping[str, Any]) -> Figure:
    """Plot one line per method: the mean change of the accuracy of each task since it was learned.

    The line of a method that forgets nothing is horizontal at 0.

    Args:
        sources: by name of the method, a source as in `accuracies`, or a list of such sources (for example one per
            seed), which are averaged.
    """
    figure, axes = _axes(xlabel="tasks learned", ylabel="change since each task was learned (points)")
    longest = 1
    for name, given in sources.items():
        several = given if isinstance(given, (list, tuple)) and not _is_matrix(given) else [given]
        curves = [_change(accuracies(source)) for source in several]
        mean = [100 * sum(values) / len(values) for values in zip(*curves, strict=True)]
        axes.plot(range(1, len(mean) + 1), mean, marker="o", markersize=3, label=name)
        longest = max(longest, len(mean))
    axes.axhline(0, color="0.8", zorder=0)
    axes.set_xticks(range(1, longest + 1))
    axes.legend(fontsize="small")
    return figure


def overlap(source: Any) -> Figure:
    """Plot the share of a task's mask (row) that is also in another task's mask (column).

    Args:
        source: a `MaskedModel`, a strategy, or a result of the leaderboard that contains ``mask_overlap``.

    Raises:
        ValueError: no task is learned yet.
    """
    if isinstance(source, Mapping):
        return _overlap(source["mask_overlap"])
    model = _model(source)
    keys = model.task_keys
    if not keys:
        raise ValueError("there is no mask to show: no task is learned yet; train on an experience first")
    masks = [torch.cat([mask.flatten() for mask in model.task_mask(key).values()]) for key in keys]
    shared = [[float((mine & other).sum() / mine.sum()) for other in masks] for mine in masks]
    return _overlap(shared, keys)


def capacity(source: Any) -> Figure:
    """Plot the share of each layer's weights that several tasks use, that one task uses, and that are free.

    Args:
        source: a `MaskedModel`, or a strategy.
    """
    layers = _model(source).capacity()
    figure, axes = _axes(xlabel="share of the layer's weights", ylabel="")
    names = list(layers)
    several = [use.reused / use.total for use in layers.values()]
    one = [(use.owned - use.reused) / use.total for use in layers.values()]
    free = [use.free / use.total for use in layers.values()]
    places = range(len(names))
    axes.barh(places, several, label="used by several tasks", color="#1f4e79")
    axes.barh(places, one, left=several, label="used by one task", color="#6fa8dc")
    axes.barh(places, free, left=[a + b for a, b in zip(several, one, strict=True)], label="free", color="#e8e8e8")
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    figure.legend(fontsize="small", loc="outside lower center", ncols=3, frameon=False)
    return figure


def accuracy_over_bytes(results: Iterable[Any]) -> Figure:
    """Plot the average accuracy over the bytes per task, with one point per result.

    Args:
        results: results of the leaderboard: dictionaries or their JSON files.
    """
    figure, axes = _axes(xlabel="bytes per task", ylabel="average accuracy")
    for given in results:
        result = json.loads(Path(given).read_text()) if isinstance(given, (str, os.PathLike)) else given
        point = (result["bytes_per_task"], result["average_accuracy"])
        axes.scatter(*point, color="#1f4e79")
        axes.annotate(result["method"], point, xytext=(4, 4), textcoords="offset points", fontsize="small")
    axes.set_xscale("log")
    return figure


def _recorded(metrics: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> list[list[float]]:
    """Return the matrix from Avalanche's recorded metrics; it has NaN where a task was not tested yet."""
    columns = {
        int(name.rpartition("/Exp")[2]): values
        for name, (_, values) in sorted(metrics.items())
        if name.startswith("Top1_Acc_Exp/eval_phase/")
    }
    if not columns:
        raise ValueError(
            "the strategy's evaluator has no accuracy of single experiences: give it "
            "accuracy_metrics(experience=True), and call strategy.eval(stream) after each task"
        )
    rows = max(len(values) for values in columns.values())
    width = max(columns) + 1
    matrix = [[float("nan")] * width for _ in range(rows)]
    for task, values in columns.items():
        for row, value in enumerate(values, start=rows - len(values)):
            matrix[row][task] = float(value)
    return matrix


def _change(matrix: Sequence[Sequence[float]]) -> list[float]:
    """Return, after every task, the mean change of the accuracy of all tasks so far since each was learned."""
    return [
        sum(row[task] - matrix[task][task] for task in range(after + 1)) / (after + 1)
        for after, row in enumerate(matrix)
    ]


def _is_matrix(given: Sequence[Any]) -> bool:
    return bool(given) and isinstance(given[0], Sequence) and bool(given[0]) and isinstance(given[0][0], (int, float))


def _model(source: Any) -> MaskedModel:
    model = getattr(source, "model", source)
    if not isinstance(model, MaskedModel):
        raise TypeError(f"expected a MaskedModel or a strategy of this package; got {type(source).__name__}")
    return model


def _axes(**labels: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot(**labels)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _overlap(shared: Sequence[Sequence[float]], keys: Sequence[int] | None = None) -> Figure:
    return _heatmap(
        shared, xlabel="is also in the mask of task", ylabel="of the mask of task", title="overlap", ticks=keys
    )


def _heatmap(
    rows: Sequence[Sequence[float]], *, xlabel: str, ylabel: str, title: str, ticks: Sequence[int] | None = None
) -> Figure:
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel, title=title)
    figure.colorbar(axes.imshow(rows, vmin=0, vmax=1, cmap="Blues"))
    across, down = (ticks or range(len(rows[0]))), (ticks or range(len(rows)))
    axes.set_xticks(range(len(rows[0])), [str(tick) for tick in across])
    axes.set_yticks(range(len(rows)), [str(tick) for tick in down])
    if max(len(rows), len(rows[0])) <= MANY:
        for y, row in enumerate(rows):
            for x, value in enumerate(row):
                colour = "white" if value > 0.6 else "black"
                axes.text(x, y, f"{value:.2f}", ha="center", va="center", color=colour, fontsize="small")
    return figure
