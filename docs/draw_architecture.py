"""Draws ``architecture.svg`` from the imports of the package, with each part above the parts that it imports.

    python docs/draw_architecture.py

The picture contains its list of arrows as metadata, and a test compares this list with the current imports.
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

from matplotlib import rcParams
from matplotlib.figure import Figure

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "avalanche_supermask"
ENTRANCES = {"__init__", "__main__", "masks"}  # they only pass names on


def arrows() -> set[tuple[str, str]]:
    """Return pairs of a part and a part that it imports; a part is a module or folder at the package's top level."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("avalanche_supermask."):
                found.add((part, str(node.module).split(".")[1]))
    return {(of, to) for of, to in found if of != to and of not in ENTRANCES and to not in ENTRANCES}


def floors(pairs: set[tuple[str, str]]) -> dict[str, int]:
    """Return the floor of each part: 0 if it imports no other part, else one above the highest that it imports."""
    parts = {part for pair in pairs for part in pair}
    found: dict[str, int] = {}
    while len(found) < len(parts):
        ready = {p for p in parts - set(found) if all(to in found for of, to in pairs if of == p)}
        if not ready:
            raise ValueError(f"a circle among {sorted(parts - set(found))}")
        found |= {p: 1 + max((found[to] for of, to in pairs if of == p), default=-1) for p in ready}
    return found


def ordered(height: dict[str, int], pairs: set[tuple[str, str]]) -> list[list[str]]:
    """Order the parts of each floor from left to right, each near its neighbours, so that few arrows cross."""
    rows = [sorted(part for part, floor in height.items() if floor == level) for level in sorted(set(height.values()))]
    for _ in range(20):
        for row in rows:
            place = {part: (i + 0.5) / len(line) for line in rows for i, part in enumerate(line)}
            joined = {p: [place[b if a == p else a] for a, b in pairs if p in (a, b)] for p in row}
            row.sort(key=lambda part: (sum(joined[part]) / len(joined[part]), part))
    return rows


def described(pairs: set[tuple[str, str]]) -> str:
    """Return the arrows as text."""
    return "; ".join(f"{of} imports {to}" for of, to in sorted(pairs))


def draw(out: Path) -> None:
    """Write the picture."""
    pairs = arrows()
    height = floors(pairs)
    rows = ordered(height, pairs)
    place = {part: ((i + 0.5) / len(row), level) for level, row in enumerate(rows) for i, part in enumerate(row)}
    letters = max(sum(len(part) + 5 for part in row) for row in rows)
    figure = Figure(figsize=(max(9.0, 0.088 * letters), 1.0 * len(rows)), layout="constrained")
    axes = figure.add_subplot(xlim=(0, 1), ylim=(-0.5, len(rows) - 0.5))
    axes.set_axis_off()
    direct = {(of, to) for of, to in pairs if not any((of, by) in pairs and (by, to) in pairs for by in height)}
    for of, to in sorted(direct):
        style = {"arrowstyle": "-|>", "color": "0.65", "shrinkA": 12, "shrinkB": 12}
        axes.annotate("", xy=place[of], xytext=place[to], arrowprops=style)
    for part, (x, y) in place.items():
        folder = (PACKAGE / part).is_dir()
        box = {"boxstyle": "round,pad=0.4", "facecolor": "#dbe9f6" if folder else "white", "edgecolor": "#1f4e79"}
        axes.text(x, y, f"{part}/" if folder else part, ha="center", va="center", bbox=box, fontsize=10)
    rcParams["svg.hashsalt"] = "the same file for the same imports"
    figure.savefig(out, format="svg", metadata={"Date": None, "Description": described(pairs)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "architecture.svg", help="file to write")
    draw(parser.parse_args().out)
