"""Reads result files and aggregates the cells of each row: the numbers behind the report and the page."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.lib.streams import STREAMS
from leaderboard.methods import parse_row, rows
from leaderboard.scores import forward_transfer, paired_p

__all__ = [
    "NOTHING",
    "UNKNOWN",
    "AgainstBest",
    "Comparison",
    "Result",
    "against_best",
    "against_searched",
    "by_method",
    "by_stream",
    "comparisons",
    "free_of",
    "frontier",
    "load_results",
    "mean",
    "memory_of",
    "notes_of",
    "protocol_of",
    "relative_time",
    "transfer_of",
]

Result = dict[str, Any]
NOTHING = "–"  # is shown where there is no number


def load_results(folder: Path) -> list[Result]:
    """Return all results below a folder.

    Raises:
        ValueError: a file is not a result, or the folder has no result.
    """
    results = [_load(path) for path in sorted(folder.glob("*/*/seed*.json"))]
    if not results:
        raise ValueError(
            f"no results below {folder}: expected <stream>/<method>/seed<k>.json; run the leaderboard first"
        )
    return results


def _load(path: Path) -> Result:
    try:
        found = json.loads(path.read_text())
        return {**{key: found[key] for key in _NEEDED}, **{key: found.get(key) for key in _OPTIONAL}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a result file ({error!r}); delete it, or run its cell again") from None


_NEEDED = ("method", "stream", "seed", "average_accuracy", "forgetting", "bwt", "bytes_per_task", "bytes_total",
           "train_seconds", "output_drift", "accuracy_matrix", "config", "commit", "machine")  # fmt: skip
_OPTIONAL = ("selection_bytes", "pruning", "train_cpu_seconds", "eval_seconds", "eval_cpu_seconds", "task_id_accuracy",
             "batch_accuracy", "free_share", "peak_memory_bytes")  # fmt: skip


def by_stream(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return the results of each stream: first this project's streams in their order, then all other streams."""
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[result["stream"]].append(result)
    order = [*(name for name in STREAMS if name in groups), *(name for name in groups if name not in STREAMS)]
    return {name: groups[name] for name in order}


def by_method(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return the results of each row."""
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[result["method"]].append(result)
    return groups


GIVEN, UNKNOWN = "task id given", "task id unknown"  # at test


class Comparison(NamedTuple):
    """Results of one stream and one scenario, which are compared with one another.

    Attributes:
        stream: name of the stream.
        scenario: whether the task of a sample is given at test.
        results: the results of all rows.
        naive: the results of the row `naive`, in any scenario; times are divided by its times.
    """

    stream: str
    scenario: str
    results: list[Result]
    naive: list[Result]


def comparisons(results: Sequence[Result]) -> list[Comparison]:
    """Group results by stream, and then by whether the task is given at test."""
    found = []
    for name, of_stream in by_stream(results).items():
        parts: dict[str, list[Result]] = {GIVEN: [], UNKNOWN: []}
        for result in of_stream:
            parts[_scenario(result)].append(result)
        naive = by_method(of_stream).get("naive", [])
        found += [Comparison(name, scenario, part, naive) for scenario, part in parts.items() if part]
    return found


def _scenario(result: Result) -> str:
    stream = STREAMS.get(result["stream"])
    inferred = result["config"]["settings"].get("task_inference", "given") != "given"
    return UNKNOWN if inferred or (stream and not stream.task_labels) else GIVEN


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not None; None if all are."""
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found else None


class AgainstBest(NamedTuple):
    """A comparison of the rows with at least three seeds with the best of them.

    Attributes:
        best: the row with the highest mean accuracy.
        p: the p-value of each other row, from a paired t-test over the seeds that both rows have. A row that shares
            fewer than three seeds with the best one has no entry.
    """

    best: str
    p: dict[str, float]

    @property
    def level(self) -> list[str]:
        """The rows whose difference from the best one is not significant."""
        return [name for name, p in self.p.items() if p >= SIGNIFICANCE]


SIGNIFICANCE = 0.05


def against_best(results: Sequence[Result]) -> AgainstBest | None:
    """Compare the rows with the best one; None where fewer than two rows have three seeds."""
    accuracies = {name: _by_seed(cells) for name, cells in by_method(results).items()}
    enough = [name for name, found in accuracies.items() if len(found) >= 3]
    if len(enough) < 2:
        return None
    best = max(enough, key=lambda name: statistics.fmean(accuracies[name].values()))
    p = {name: paired_p(accuracies[best], accuracies[name]) for name in enough if name != best}
    return AgainstBest(best, {name: value for name, value in p.items() if value is not None})


def against_searched(name: str, groups: Mapping[str, Sequence[Result]]) -> float | None:
    """Return the mean accuracy of a row at defaults minus that of its searched row, over the seeds that both have.

    Returns None for a row that is not at defaults, and where the two rows have no seed in common.
    """
    searched = name.replace("+default", "")
    if searched == name or searched not in groups:
        return None
    mine, theirs = _by_seed(groups[name]), _by_seed(groups[searched])
    return mean([mine[seed] - theirs[seed] for seed in mine.keys() & theirs.keys()])


def _by_seed(cells: Sequence[Result]) -> dict[int, float]:
    return {r["seed"]: r["average_accuracy"] for r in cells}


def frontier(results: Sequence[Result]) -> list[tuple[float, float, str]]:
    """Return (bytes in all, accuracy, name) of the rows that no row with as many bytes or fewer beats; ascending."""
    found = sorted(
        (mean([r["bytes_total"] for r in cells]) or 0, -(mean([r["average_accuracy"] for r in cells]) or 0), name)
        for name, cells in by_method(results).items()
    )
    best: list[tuple[float, float, str]] = []
    for size, negative, name in found:
        if not best or -negative > best[-1][1]:
            best.append((size, -negative, name))
    return best


def transfer_of(result: Result) -> float | None:
    """Return the forward transfer (FWT) of a result.

    It needs the number of classes of the stream, so it is None for a stream that this project does not define: a
    module that a result file names is never imported for a report.
    """
    stream = STREAMS.get(result["stream"])
    return forward_transfer(result["accuracy_matrix"], 1 / stream.classes) if stream else None


def free_of(cells: Sequence[Result]) -> float | None:
    """Return the mean share of the weights that no mask holds in the end, over the cells with masks."""
    return mean([r["free_share"][-1] for r in cells if r.get("free_share")])


def memory_of(cells: Sequence[Result]) -> str:
    """Return the mean peak memory in MB as text, over the cells that measured it."""
    peak = mean([r.get("peak_memory_bytes") for r in cells])
    return NOTHING if peak is None else f"{peak / 1e6:,.0f} MB"


def relative_time(key: str, cells: Sequence[Result], naive: Sequence[Result]) -> float | None:
    """Return the mean processor time divided by naive's, over the cells that measured it."""
    mine, reference = (mean([r.get(key) for r in found]) for found in (cells, naive))
    return mine / reference if mine and reference else None


def protocol_of(config: Result) -> str:
    """Return the tasks, network, epochs and batch size as a line of text."""
    shape = config["network"]
    network = shape if isinstance(shape, str) else "-".join(str(width) for width in shape)
    return f"{config['tasks']} tasks, {network}, {config['epochs']} epochs per task, batch {config['batch_size']}.\n"


def notes_of(name: str, cells: Sequence[Result]) -> str:
    """Return the settings of a row and the remarks that the table shows for it."""
    settings = cells[0]["config"]["settings"]
    shown = ", ".join(f"{key} {_value(value)}" for key, value in settings.items() if value is not None)
    try:
        note = rows()[parse_row(name)[0]].note
    except ValueError:  # the row belongs to another package, which is not installed here
        note = ""
    return "; ".join(part for part in (shown, note, _graceful(cells)) if part)


def _graceful(cells: Sequence[Result]) -> str:
    """Return the accuracy that pruning cost the tasks, on held-out training data; empty for other methods."""
    reports = [report for r in cells for report in (r.get("pruning") or {}).values()]
    lost = [report["accuracy_before"] - report["accuracy_after"] for report in reports]
    return f"graceful forgetting {mean(lost):.4f} per task, at most {max(lost):.4f}, before fine-tuning" if lost else ""


def _value(value: Any) -> str:
    return (
        " ".join(map(str, value))
        if isinstance(value, list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
