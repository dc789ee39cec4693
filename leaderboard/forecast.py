"""Estimates how long cells take, from the times of similar cells."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from leaderboard.aggregate import load_results
from leaderboard.cell import Cell
from leaderboard.pool import is_done

__all__ = ["forecast"]

COMMITTED = Path(__file__).with_name("results")


def forecast(cells: Sequence[Cell], *, out: Path, workers: int) -> str:
    """Return a text with one line per cell, which marks it as done or gives an estimate, and a line with the sum.

    Args:
        cells: the cells of a run.
        out: folder of the run. Estimates come from the results in it and from the committed results.
        workers: number of cells that run at the same time.
    """
    known = [*_results(out), *_results(COMMITTED)]
    lines, seconds, unknown = [], 0.0, 0
    for cell in cells:
        if is_done(cell, out):
            lines.append(f"done                {cell.path}")
            continue
        estimate = _seconds(cell, known)
        unknown += estimate is None
        seconds += estimate or 0
        lines.append(f"to run  {'about ' + _readable(estimate) if estimate else 'no estimate':11} {cell.path}")
    if any(line.startswith("to run") for line in lines):
        missing = f", and {unknown} cells of a kind that was never measured" if unknown else ""
        lines.append(f"about {_readable(seconds / workers)} with {workers} workers{missing}")
    return "\n".join(lines)


def _results(folder: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from load_results(folder)
    except ValueError:
        return


def _seconds(cell: Cell, known: Sequence[dict[str, Any]]) -> float | None:
    """Return the mean time of the same method on the stream, or else of all methods, scaled to the tasks and epochs."""
    on_stream = [result for result in known if result["stream"] == cell.stream]
    alike = [result for result in on_stream if result["method"] == cell.method] or on_stream
    if not alike:
        return None
    config = cell.config()
    size = config["tasks"] * config["epochs"]
    return statistics.fmean(
        (r["train_seconds"] + (r["eval_seconds"] or 0)) * size / (r["config"]["tasks"] * r["config"]["epochs"])
        for r in alike
    )


def _readable(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
