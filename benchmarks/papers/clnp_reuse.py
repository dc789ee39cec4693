r"""Plot how many units of each layer CLNP reuses over tasks, from a result file of the leaderboard.

    python -m benchmarks.papers.clnp_reuse leaderboard/results/permuted-mnist-wide/clnp/seed13.json \
        --out docs/clnp_reuse.png

The paper finds that early features transfer: the first layer is reused more than the last layer.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def reuse(pruning: dict[str, Any]) -> dict[str, list[float]]:
    """Return, by layer and task, the share of the units of a task that earlier tasks had claimed."""
    layers: dict[str, list[float]] = {}
    for report in pruning.values():
        for layer, use in report["layers"].items():
            layers.setdefault(layer, []).append(use["reused"] / max(1, use["new"] + use["reused"]))
    return dict(sorted(layers.items()))


def main() -> None:
    """Draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="result file of the method clnp")
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    options = parser.parse_args()
    result = json.loads(options.result.read_text())
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for number, (layer, shares) in enumerate(reuse(result["pruning"]).items(), start=1):
        tasks = range(1, len(shares) + 1)
        left.plot(tasks, shares, marker="o", label=f"hidden layer {number}")
        free = [r["layers"][layer]["free"] / r["layers"][layer]["total"] for r in result["pruning"].values()]
        right.plot(tasks, free, marker="o", label=f"hidden layer {number}")
        print(f"hidden layer {number}: reused {[round(s, 2) for s in shares]}, free at the end {free[-1]:.2f}")
    left.set(xlabel="task", ylabel="reused share of the units it uses", ylim=(0, 1))
    right.set(xlabel="task", ylabel="share of free units", ylim=(0, 1))
    left.legend()
    figure.suptitle(f"CLNP on {result['stream']}, {'-'.join(map(str, result['config']['network']))}", fontsize=10)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=120)


if __name__ == "__main__":
    main()
