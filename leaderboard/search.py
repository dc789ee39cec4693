"""Chooses the settings of every row on held-out training data, with the same rule and within the same budget.

The rule is a coordinate search. It starts from the defaults and goes through the axes of a row one after the other. It
tries all values of an axis, while the other axes keep the best values so far; a search has at most ten trials. In a row
that fixes a density (``exssnet@0.02``) the density is not searched. A trial trains on 90 % of the training data of the
first five tasks, or of all tasks for a `Row.whole_stream`. Its score is the average accuracy on the other 10 %, at a
seed that no result uses. The search never reads test data.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib.streams import stream_of
from leaderboard.cell import Cell
from leaderboard.methods import parse_row, protocol, rows
from leaderboard.pool import run_cells

__all__ = ["search"]

SEED = 1000
TASKS = 5
HELD_OUT = 0.1


def _trial(stream: str, row: str, settings: dict[str, Any]) -> Cell:
    all_tasks = stream_of(stream).tasks
    tasks = all_tasks if rows()[parse_row(row)[0]].whole_stream else min(TASKS, all_tasks)
    return Cell(stream, row, SEED, settings, tasks=tasks, validation=HELD_OUT)


def search(
    stream: str,
    row: str,
    *,
    out: Path,
    dataset_root: Path | None,
    device: str = "cpu",
    modules: Sequence[str] = (),
) -> dict[str, Any]:
    """Search one row on one stream, one trial after the other.

    Args:
        stream: name of the stream.
        row: name of the row; settings that the name fixes (``@density``, ``+kkt``) are not searched.
        out: folder for the trials' results; finished trials are not run again.
        dataset_root: where torchvision keeps its data.
        device: device on which trials compute.
        modules: modules that register the row's method; the processes of the trials import them.

    Returns:
        The chosen settings, their validation accuracy, and every trial.

    Raises:
        ValueError: the row has nothing to search.
    """
    method, fixed = parse_row(row)
    if not set(rows()[method].axes) - set(fixed):
        raise ValueError(
            f"{row!r} has no setting to search: give its class search_axes = {{'name': (value, ...)}}, or arguments "
            "named density, layer_densities, mask_lr or weight_lr"
        )
    best = {**rows()[method].defaults, **protocol(stream, method), **fixed}
    seen: dict[str, float] = {}
    trials: list[dict[str, Any]] = []
    for axis, values in rows()[method].axes.items():
        if axis in fixed:
            continue
        if axis == "head" and (stream_of(stream).distinct_classes or not stream_of(stream).task_labels):
            # A shared head cannot fit different classes with the same number; without task labels, only it is possible.
            continue
        default = [] if axis in best else [best]  # the class's own default may not be among the values
        candidates = [*default, *({**best, axis: value} for value in values)]
        scores = []
        for settings in candidates:
            key = json.dumps(settings, sort_keys=True)
            if key not in seen:
                seen[key] = _validation_accuracy(_trial(stream, row, settings), out, dataset_root, device, modules)
                trials.append({"settings": settings, "validation_accuracy": seen[key]})
            scores.append(seen[key])
        best = candidates[max(range(len(scores)), key=lambda i: scores[i])]
    return {"settings": best, "validation_accuracy": max(seen.values(), default=None), "trials": trials}


def _validation_accuracy(
    cell: Cell, out: Path, dataset_root: Path | None, device: str, modules: Sequence[str]
) -> float:
    settings = "_".join(str(value) for value in cell.settings.values())
    folder = out / "".join(c if c.isalnum() or c in "._-" else "-" for c in settings)
    failed = run_cells(
        [cell], out=folder, workers=1, dataset_root=dataset_root, device=device, quiet=True, modules=modules
    )
    for error in failed.values():
        if "FloatingPointError" in error or "contain NaN" in error:
            return 0.0  # the settings diverge
        raise RuntimeError(f"{cell.method} on {cell.stream} with {cell.settings} failed:\n{error}")
    return float(json.loads((folder / cell.path).read_text())["average_accuracy"])
