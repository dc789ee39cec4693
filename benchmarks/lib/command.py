"""The command line of scripts that write a result file row by row and can draw it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from avalanche_supermask.strategy import check_device
from benchmarks.lib.provenance import write_result

__all__ = ["device_name", "run_or_draw"]


def device_name(text: str) -> str:
    """Type of an option ``--device``: raises an error of one line for a device that this machine does not have."""
    try:
        check_device(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def run_or_draw(
    parser: argparse.ArgumentParser,
    module: str,
    run: Callable[[argparse.Namespace], Iterator[dict[str, Any]]],
    draw: Callable[[dict[str, Any], Path], None] | None,
) -> None:
    """Run a script and write the result file after each row; or, with ``--plot``, draw the result file.

    Args:
        parser: parser with the script's own options; ``--seed`` may be among them.
        module: name of the script's module.
        run: called with the options; yields rows.
        draw: called with a result and the file of the picture; None if the script draws nothing.
    """
    parser.add_argument("--dataset-root", type=Path, help="where torchvision keeps the data, or puts them")
    parser.add_argument("--out", type=Path, required=True, help="result file, written at each row")
    if draw:
        parser.add_argument("--plot", type=Path, help="draw the result file OUT into this picture; nothing is run")
    options = parser.parse_args()
    if draw and options.plot:
        draw(json.loads(options.out.read_text()), options.plot)
        return
    if options.dataset_root is None:
        parser.error(
            "--dataset-root DIR is needed to run (images are downloaded if not there, texts are read as "
            "benchmarks/lib/text.py says)"
        )
    torch.set_num_threads(1)
    torch.manual_seed(getattr(options, "seed", 0))  # A script with several seeds sets each of them itself.
    shown = {k: v for k, v in vars(options).items() if k not in ("dataset_root", "out", "plot")}
    rows = []
    for row in run(options):
        rows.append(row)
        write_result(options.out, module, sys.argv[1:], options=shown, rows=rows)
