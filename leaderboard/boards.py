"""What a finished cell tells TensorBoard beside its curves: how to sort it, and its accuracy matrix as a picture."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

__all__ = ["write_summary"]

PIXELS = 24  # of an entry of the matrix


def write_summary(writer: SummaryWriter, result: dict[str, Any]) -> None:
    """Add hyperparameters with the final numbers (the HParams tab), and the accuracy matrix (the Images tab).

    Args:
        writer: of the cell's own folder.
        result: of the cell, as it goes to its file.
    """
    settings = {key: value if isinstance(value, (int, float, str)) else str(value)
                for key, value in result["config"]["settings"].items()}  # fmt: skip
    named = {"method": result["method"], "stream": result["stream"], "seed": result["seed"], **settings}
    wanted = ("average_accuracy", "forgetting", "bytes_per_task", "bytes_total", "train_cpu_seconds")
    numbers = {f"final/{key}": float(result[key]) for key in wanted if result[key] is not None}
    writer.add_hparams(named, numbers, run_name=".")
    matrix = torch.tensor(result["accuracy_matrix"])
    writer.add_image("accuracy matrix", torch.kron(matrix, torch.ones(PIXELS, PIXELS)), dataformats="HW")
