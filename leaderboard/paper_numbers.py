"""Compares numbers of papers with ours. Each comparison gives our result files, their command, and the differences.

``anchors.json`` beside the results lists the comparisons. It does not contain our numbers, but the place of each:
``files`` is a pattern of paths, relative to that folder. ``value`` is a list of keys into a file, where ``*`` is the
mean over a list; or it is ``first_tasks``, for the mean of the last row of the accuracy matrix over so many tasks. The
values of several files are averaged.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Anchor", "anchors_table", "load_anchors"]


@dataclass(frozen=True)
class Anchor:
    """One comparison of a paper's number with ours.

    Attributes:
        what: method, stream and measure.
        source: the paper or code that the number comes from.
        theirs: their accuracy, in [0, 1].
        ours: our accuracy, in [0, 1], as the mean over files.
        seeds: number of files in the mean; the leaderboard's own results have one file per seed.
        command: command that wrote the first file.
        differences: differences in setting.
    """

    what: str
    source: str
    theirs: float
    ours: float
    seeds: int
    command: str
    differences: str


def load_anchors(folder: Path) -> list[Anchor]:
    """Return the comparisons that ``anchors.json`` in a folder lists; none if there is no such file.

    Raises:
        ValueError: the files of an anchor are missing, or do not contain the value that it names.
    """
    listed = folder / "anchors.json"
    return [_anchor(entry, folder) for entry in json.loads(listed.read_text())] if listed.exists() else []


def _anchor(entry: dict[str, Any], folder: Path) -> Anchor:
    files = [json.loads(path.read_text()) for path in sorted(folder.glob(entry["files"]))]
    try:
        ours = statistics.fmean(_value(content, entry["value"]) for content in files)
    except (statistics.StatisticsError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"anchor {entry['what']!r}: {entry['files']} gives no {entry['value']} ({error})") from None
    command = files[0]["command"]
    kept = {key: entry[key] for key in ("what", "source", "theirs", "differences")}
    return Anchor(ours=ours, seeds=len(files), command=command, **kept)


def _value(content: Any, where: list[Any] | dict[str, int]) -> float:
    if isinstance(where, dict):
        return statistics.fmean(content["accuracy_matrix"][-1][: where["first_tasks"]])
    for place, key in enumerate(where):
        if key == "*":
            return statistics.fmean(_value(entry, where[place + 1 :]) for entry in content)
        content = content[key]
    return float(content)


def anchors_table(anchors: list[Anchor]) -> str:
    """Return the comparisons as a Markdown section; empty without anchors."""
    if not anchors:
        return ""
    lines = [
        f"| {a.what} | {a.source} | {a.theirs:.4f} | {a.ours:.4f} ({a.seeds}) | {a.ours - a.theirs:+.4f} | "
        f"{a.differences} | `{a.command}` |"
        for a in anchors
    ]
    head = (
        "| what | source | theirs | ours (files) | difference | differences in setting | command |\n"
        + "| --- " * 7
        + "|"
    )
    return "\n".join(["## Paper anchors\n", head, *lines, ""])
