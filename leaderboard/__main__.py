"""Command line: ``python -m leaderboard run | add | report | search``."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from benchmarks.lib.stream_names import STREAM_NAMES, SUITES
from leaderboard import SETTINGS

METHODS = "naive,ewc,si,lwf,replay,packnet,joint,separate,supsup,ssnet,exssnet,clnp,impresslearn"


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m leaderboard", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="run each (stream, method, seed) that has no result yet")
    _methods_argument(run)
    _import_argument(run)
    _run_arguments(run)

    add = commands.add_parser("add", help="run a strategy class of yours and add it to the leaderboard in --out")
    add.add_argument(
        "modules", metavar="module:Class", help="import path of a strategy class, ours or Avalanche's kind"
    )
    _run_arguments(add)

    report = commands.add_parser("report", help="write LEADERBOARD.md from result files")
    report.add_argument("--results", type=Path, required=True, help="folder of <stream>/<method>/seed<k>.json")
    report.add_argument("--out", type=Path, required=True, help="folder for LEADERBOARD.md")
    report.add_argument("--page", type=Path, help="file for the HTML page (default: index.html in --out)")
    report.add_argument("--readme", type=Path, help="also put a short table between the leaderboard marks of this file")

    searching = commands.add_parser("search", help="choose settings on held-out training data")
    _methods_argument(searching)
    _import_argument(searching)
    _stream_arguments(searching)
    searching.add_argument("--out", type=Path, default=Path("runs/search"), help="folder for the trials")
    searching.add_argument("--settings", type=Path, default=SETTINGS, help="file that the choice is written to")

    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends like Ctrl-C: no cell keeps running
    try:
        from leaderboard.commands import execute  # this takes seconds, and neither the help nor a typing error needs it

        return execute(options)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; finished cells are kept, the same command goes on from here", file=sys.stderr)
        return 130


def _methods_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--methods", default=METHODS, help="comma-separated rows: method[+option][@density] (default %(default)s)"
    )


def _import_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--import", dest="modules", default="", help="comma-separated: modules that register methods, or module:Class"
    )


def _stream_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", choices=SUITES, default="digits", help="a set of streams (default digits)")
    known = ", ".join(STREAM_NAMES)
    parser.add_argument(
        "--streams", help=f"comma-separated, instead of the suite's: {known}, or module:attribute of a Stream of yours"
    )
    parser.add_argument(
        "--dataset-root", type=Path, help="where torchvision keeps its data, or stores what it downloads"
    )
    parser.add_argument(
        "--device", default="cpu", help="where cells compute: cpu, cuda, or cuda:1, for example (default cpu)"
    )
    parser.add_argument("--workers", type=int, default=2, help="cells at a time (default 2)")


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    _stream_arguments(parser)
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated (default 0,1,2)")
    parser.add_argument("--out", type=Path, default=Path("runs/leaderboard"), help="output folder")
    parser.add_argument("--epochs", type=int, help="epochs per task (default: the stream's)")
    parser.add_argument("--tasks", type=int, help="only the first so many tasks (default: all)")
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="processes here (default), or a Ray cluster"
    )
    parser.add_argument(
        "--address", help="address of a running Ray cluster: auto, host:port, ray://host:port (default: start one here)"
    )
    parser.add_argument(
        "--gpus-per-cell",
        type=float,
        help="with Ray: share of a GPU per cell; 0.25 puts four cells on one GPU (default 0)",
    )
    parser.add_argument("--retries", type=int, help="with Ray: new tries of a cell whose machine died (default 2)")
    parser.add_argument("--dry-run", action="store_true", help="list the cells and how long they may take, and stop")


if __name__ == "__main__":
    sys.exit(main())
