"""Runs the examples and writes for the gallery the output of each and, for some of them, a picture.

    python docs/draw_gallery.py [NAME ...]

An example runs with its default settings, after ``torch.manual_seed(0)``. The picture is drawn by
`avalanche_supermask.plots` from the strategies that the script has made.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import runpy
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from avalanche_supermask import plots

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
OUT = HERE / "gallery"

SCRIPTS = [
    "first_steps",
    "own_model",
    "compare_with_ewc",
    "save_and_export",
    "resume_after_crash",
    "unknown_task_ids",
    "fast_adaptation",
    "transformer",
    "pretrained_images",
    "pretrained_texts",
    "several_processes",
    "tensorboard_curves",
    "own_method",
    "wsn",
    "packnet",
    "hat",
]


def _adaptation(names: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.add_subplot(xlabel="steps", ylabel="accuracy on the fifth task")
    axes.plot(*zip(*names["curve"], strict=True), marker="o", markersize=3)
    return figure


PICTURES: dict[str, Callable[[Mapping[str, Any]], Figure]] = {
    "first_steps": lambda names: plots.accuracy_matrix(names["strategy"]),
    "own_model": lambda names: plots.capacity(names["strategy"]),
    "compare_with_ewc": lambda names: plots.forgetting({"EWC": names["ewc"], "ExSSNeT": names["exssnet"]}),
    "tensorboard_curves": lambda names: plots.forgetting({"naive": names["naive"], "SupSup": names["supsup"]}),
    "save_and_export": lambda names: plots.overlap(names["model"]),
    "fast_adaptation": _adaptation,
}


def printed(name: str, *arguments: str) -> tuple[str, dict[str, Any]]:
    """Run an example in an empty folder; return its last lines, and its global names."""
    written, before, folder = io.StringIO(), (sys.argv, Path.cwd()), tempfile.mkdtemp()
    sys.argv = [f"examples/{name}.py", *arguments]
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(written), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before[0]
        os.chdir(before[1])
    return last_part(written.getvalue()), names


def last_part(text: str) -> str:
    """Return the lines that a script prints after the last line of Avalanche's logger."""
    lines = text.replace("\r", "\n").rstrip().splitlines()
    logged = [i for i, line in enumerate(lines) if line.startswith((">", "--", "Epoch", "\t")) or not line.strip()]
    return "\n".join(lines[logged[-1] + 1 if logged else 0 :]) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=SCRIPTS, help="examples (default: all)")
    sys.path.insert(0, str(EXAMPLES))
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    for example in parser.parse_args().names:
        torch.manual_seed(0)
        text, left = printed(example)
        (OUT / f"{example}.txt").write_text(text)
        if example in PICTURES:
            PICTURES[example](left).savefig(OUT / f"{example}.png", dpi=110)
        print(f"== {example}\n{text}")
