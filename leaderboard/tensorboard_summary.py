"""Writes the hyperparameters, final numbers and figures of a finished cell for TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from avalanche_supermask import plots

__all__ = ["write_summary"]


def write_summary(writer: SummaryWriter, result: dict[str, Any]) -> None:
    """Add hyperparameters with the final numbers (the HParams tab), and figures (the Images tab).

    The figures are the accuracy matrix and, for a method with masks, the overlap of the masks and the capacity left.

    Args:
        writer: writer for the cell's own folder.
        result: result of the cell, in the form of its file.
    """
    settings = {key: value if isinstance(value, (int, float, str)) else str(value)
                for key, value in result["config"]["settings"].items()}  # fmt: skip
    named = {"method": result["method"], "stream": result["stream"], "seed": result["seed"], **settings}
    wanted = ("average_accuracy", "forgetting", "bytes_per_task", "bytes_total", "train_cpu_seconds")
    numbers = {f"final/{key}": float(result[key]) for key in wanted if result[key] is not None}
    writer.add_hparams(named, numbers, run_name=".")
    writer.add_figure("accuracy matrix", plots.accuracy_matrix(result))
    if result["mask_overlap"]:
        writer.add_figure("mask overlap", plots.overlap(result))
    if result["free_share"]:
        writer.add_figure("capacity", _capacity(result["free_share"]))


def _capacity(free: Sequence[float]) -> Figure:
    figure = Figure(layout="tight")
    axes = figure.add_subplot(xlabel="tasks learned", ylabel="weights that no task holds", ylim=(0, 1))
    axes.plot(range(1, len(free) + 1), free, marker="o")
    return figure
