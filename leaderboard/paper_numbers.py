"""Numbers of papers beside ours: each with the files ours comes from, their command, and what differs in setting.

``anchors.json`` beside the results lists them. Nothing of ours stands in it but where to find it: ``files`` (a pattern,
from that folder) and ``value`` (keys into a file, ``*`` for the mean over a list; or ``first_tasks``: mean of the last
row of the accuracy matrix over so many tasks). Several files are averaged.
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
    """One comparison.

    Attributes:
        what: method, stream and measure.
        source: whose number it is.
        theirs: accuracy, in [0, 1].
        ours: the same, mean over files.
        seeds: number of files averaged, one a seed for the leaderboard's own.
        command: of the first file.
        differences: in setting.
    """

    what: str
    source: str
    theirs: float
    ours: float
    seeds: int
    command: str
    differences: str


def load_anchors(folder: Path) -> list[Anchor]:
    """The anchors beside the results in a folder; none where there is no list of them.

    Raises:
        ValueError: an anchor whose files are not there, or do not hold what it names.
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
    """A Markdown section; empty without anchors."""
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
