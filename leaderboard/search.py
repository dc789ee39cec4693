"""Chooses settings on held-out training data, for every row with the same rule and within the same budget.

Coordinate search: starting from the defaults, each axis of a row in turn is tried at all its values, the others
at the best found so far; at most ten trials. A row that is pinned to a density (``exssnet@0.02``) is searched like
any other, its density left out. A trial trains on 90 % of the training data of the first five tasks (all tasks,
for a `Row.whole_stream`) and is scored by the average accuracy on the other 10 %, at a seed that no result uses.
No test data are touched.
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
        row: name of the row; what the name fixes (``@density``, ``+kkt``) is not searched.
        out: folder for the trials' results; finished ones are not run again.
        dataset_root: where torchvision keeps its data.
        device: where trials compute.
        modules: to import in the processes of the trials: they register the row's method.

    Returns:
        The settings chosen, their validation accuracy, and every trial.

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
            continue  # a shared head would have to answer two ways at once; without labels there is no other one
        default = [] if axis in best else [best]  # of a class whose own default is not among the values
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
            return 0.0  # a setting that diverges loses
        raise RuntimeError(f"{cell.method} on {cell.stream} with {cell.settings} failed:\n{error}")
    return float(json.loads((folder / cell.path).read_text())["average_accuracy"])
