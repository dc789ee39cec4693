"""Draw the README's picture, the change of accuracy since a task was learned, from the leaderboard's result files.

python -m benchmarks.practice.forgetting_picture
"""

from __future__ import annotations

import argparse
from pathlib import Path

from avalanche_supermask import plots

ROOT = Path(__file__).parents[2]
ROWS = {
    "plain training": ["naive"],
    "SI": ["si"],
    "EWC": ["ewc"],
    "replay": ["replay"],
    "SupSup, ExSSNeT, CLNP": ["supsup", "exssnet", "clnp"],
}


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", default="permuted-mnist", help="name of the stream (default %(default)s)")
    parser.add_argument("--results", type=Path, default=ROOT / "leaderboard/results", help="folder of result files")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/forgetting.png", help="file to write")
    options = parser.parse_args()
    folder = options.results / options.stream
    files = {
        label: [file for row in rows for file in sorted((folder / row).glob("seed*.json"))]
        for label, rows in ROWS.items()
    }
    figure = plots.forgetting(files)
    figure.axes[0].set_title(f"{options.stream}, mean of three seeds")
    figure.savefig(options.out, dpi=130)
    print(options.out)


if __name__ == "__main__":
    main()
