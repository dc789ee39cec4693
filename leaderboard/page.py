"""Writes `index.html` from result files: one page to sort and filter, which needs no network connection."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from leaderboard.aggregate import (
    UNKNOWN,
    AgainstBest,
    Result,
    against_best,
    against_searched,
    by_method,
    comparisons,
    free_of,
    frontier,
    load_results,
    memory_of,
    notes_of,
    protocol_of,
    relative_time,
    transfer_of,
)
from leaderboard.paper_numbers import Anchor, load_anchors
from leaderboard.scores import forgetting_curve

__all__ = ["page", "write_page"]

TEMPLATE = Path(__file__).with_name("template.html")


def page(results: Sequence[Result], anchors: Sequence[Anchor] = ()) -> str:
    """Return the whole page. The content of result files is inserted as data, never as markup."""
    data = [
        {
            "name": f"{stream}, {scenario}" if scenario == UNKNOWN else stream,
            "protocol": f"{protocol_of(found[0]['config']).strip()} Scenario: {scenario}.",
            "rows": _rows(found, naive),
            "frontier": [method for _, _, method in frontier(found)],
        }
        for stream, scenario, found, naive in comparisons(results)
    ]
    template = TEMPLATE.read_text().replace("/*ANCHORS*/", _script([asdict(anchor) for anchor in anchors]))
    return template.replace("/*DATA*/", _script(data))


def _script(data: Any) -> str:
    return json.dumps(data).replace("<", "\\u003c")  # else a method's name could end the script element


def write_page(results_dir: Path, file: Path) -> None:
    """Write the page of the results below a folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page(load_results(results_dir), load_anchors(results_dir)))


def _rows(results: Sequence[Result], naive: Sequence[Result]) -> list[dict[str, Any]]:
    tested, groups = against_best(results), by_method(results)
    return [_row(name, groups, naive, tested) for name in groups]


def _row(
    name: str, groups: Mapping[str, Sequence[Result]], naive: Sequence[Result], tested: AgainstBest | None
) -> dict[str, Any]:
    cells = groups[name]
    n_tasks = len(cells[0]["accuracy_matrix"][0])
    # Some cells of a row may have run over fewer tasks; only cells with as many tasks as the first one make the curves.
    same = [r["accuracy_matrix"] for r in cells if len(r["accuracy_matrix"][0]) == n_tasks]
    matrix = [_means(lines) for lines in zip(*same, strict=True)]
    learned = len(matrix) == n_tasks  # joint training has one line only
    free = [r["free_share"] for r in cells if len(r.get("free_share") or []) == n_tasks]
    return {
        "method": name,
        "best": tested is not None and name == tested.best,
        "level": f"{tested.p[name]:.2f}" if tested is not None and name in tested.level else None,
        "against_searched": _cell([against_searched(name, groups)], lambda v: f"{v:+.4f}"),
        "accuracy": _cell([r["average_accuracy"] for r in cells], _four),
        "forgetting": _cell([r["forgetting"] for r in cells], _four),
        "bwt": _cell([r["bwt"] for r in cells], _four),
        "fwt": _cell([transfer_of(r) for r in cells], _four),
        "task_id": _cell([r.get("task_id_accuracy") for r in cells], _four),
        "in_batches": _cell([r.get("batch_accuracy") for r in cells], _four),
        "drift": _cell([max(r["output_drift"] for r in cells)], lambda v: f"{v:.2g}"),
        "bytes_per_task": _cell([r["bytes_per_task"] for r in cells], _whole),
        "bytes_total": _cell([r["bytes_total"] for r in cells], _whole),
        "free": _cell([free_of(cells)], lambda v: f"{v:.3f}"),
        "time": _cell([relative_time("train_cpu_seconds", cells, naive)], lambda v: f"{v:.2f}"),
        "eval_time": _cell([relative_time("eval_cpu_seconds", cells, naive)], lambda v: f"{v:.2f}"),
        "memory": _cell([r.get("peak_memory_bytes") for r in cells], lambda _: memory_of(cells)),
        "seeds": {"value": len(cells), "text": ", ".join(str(seed) for seed in sorted(r["seed"] for r in cells))},
        "matrix": [[round(value, 4) for value in line] for line in matrix],
        "curve": [statistics.fmean(line[: i + 1]) for i, line in enumerate(matrix)] if learned else [],
        "forgetting_curve": _means([forgetting_curve(m) for m in same]) if learned else [],
        "free_curve": _means(free) if free else [],
        "note": notes_of(name, cells),
    }


def _means(lines: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean over the lines, entry by entry."""
    return [statistics.fmean(values) for values in zip(*lines, strict=True)]


def _cell(values: Sequence[float | None], form: Callable[[float], str]) -> dict[str, Any] | None:
    found = [value for value in values if value is not None]
    if not found:
        return None
    mean = statistics.fmean(found)
    if len(found) < 2 or form is not _four:
        return {"value": mean, "text": form(mean)}
    deviation = statistics.stdev(found)
    return {"value": mean, "text": f"{form(mean)} ± {form(deviation)}", "deviation": deviation}


def _four(value: float) -> str:
    return f"{value:.4f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"
