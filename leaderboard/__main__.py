"""Command line: ``python -m leaderboard run | add | report | search``."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from avalanche_supermask.strategy import check_device
from benchmarks.lib.provenance import write_json
from benchmarks.lib.streams import STREAMS, SUITES, stream_of
from leaderboard.aggregate import comparisons, load_results
from leaderboard.arguments import check_counts, check_tasks, fitting, listed, make_folder, seeds_of, streams_of
from leaderboard.cell import SETTINGS, Cell, settings_of
from leaderboard.external import join
from leaderboard.forecast import forecast
from leaderboard.page import write_page
from leaderboard.pool import run_cells
from leaderboard.report import table, write_readme, write_report
from leaderboard.search import search

PRINTED = ("method", "accuracy", "forgetting", "BWT", "drift", "bytes per task", "bytes in all", "time")
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
        check_counts(options)
        return {"run": _run, "add": _run, "report": _report, "search": _search}[options.command](options)
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
    known = ", ".join(STREAMS)
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


def _modules(options: argparse.Namespace) -> list[str]:
    return listed(options.modules, "--import") if options.modules else []


def _run(options: argparse.Namespace) -> int:
    modules = _modules(options)
    joined = [join(name) for name in modules]
    names = listed(options.methods, "--methods") if options.command == "run" else [row for row in joined if row]
    if not names:
        raise ValueError(f"add takes module:Class; {options.modules!r} names no class")
    streams = streams_of(options)
    for stream in streams:
        check_tasks(options.tasks, stream)
    pairs = fitting(streams, names)
    cells = [
        Cell(stream, row, seed, settings_of(stream, row), epochs=options.epochs, tasks=options.tasks)
        for seed in seeds_of(options.seeds)
        for stream, row in pairs
    ]
    if options.dry_run:
        print(forecast(cells, out=options.out, workers=options.workers))
        return 0
    if options.engine == "local":  # with Ray, the devices are on other machines
        check_device(options.device)
    engine = _engine(options)
    make_folder(options.out)
    failed = engine(
        cells,
        out=options.out,
        workers=options.workers,
        dataset_root=options.dataset_root,
        device=options.device,
        modules=modules,
    )
    for path, error in failed.items():
        print(f"\nFAILED {path}\n{error}", file=sys.stderr)
    if len(failed) < len(cells):
        page = write_report(options.out, options.out)
        write_page(options.out, options.out / "index.html")
        _print_tables(options.out)
        print(f"\nreport            {page}, and to look at {options.out / 'index.html'}")
        print(f"TensorBoard logs  {options.out / 'tb'}    (tensorboard --logdir {options.out / 'tb'})")
    return 1 if failed else 0


def _engine(options: argparse.Namespace) -> Callable[..., dict[str, str]]:
    """Return the function that runs the cells."""
    if options.engine == "local":
        given = {name: getattr(options, name) for name in ("address", "gpus_per_cell", "retries")}
        name, value = next((item for item in given.items() if item[1] is not None), (None, None))
        if name:
            raise ValueError(f"--{name.replace('_', '-')} {value} is of a Ray cluster: add --engine ray")
        return run_cells
    try:
        from leaderboard.on_ray import run_cells_on_ray
    except ModuleNotFoundError as error:
        raise ValueError(f"--engine ray: {error}; install it with pip install -e '.[ray]'") from None
    return partial(
        run_cells_on_ray,
        address=options.address,
        gpus_per_cell=options.gpus_per_cell or 0.0,
        retries=2 if options.retries is None else options.retries,
    )


def _print_tables(folder: Path) -> None:
    boards = {
        f"{stream}, {scenario}": table(found, columns=PRINTED, naive=naive)
        for stream, scenario, found, naive in comparisons(load_results(folder))
    }
    for board, shown in boards.items():
        lines = shown.splitlines()
        fields = [[field.strip(" |") for field in line.split(" | ")] for line in (lines[0], *lines[2:])]
        widths = [max(len(row[i]) for row in fields) for i in range(len(fields[0]))]
        print(f"\n{board}")
        for row in fields:
            print("  " + "  ".join(field.ljust(width) for field, width in zip(row, widths, strict=True)).rstrip())


def _report(options: argparse.Namespace) -> int:
    print(write_report(options.results, options.out))
    shown = options.page or options.out / "index.html"
    write_page(options.results, shown)
    print(shown)
    if options.readme:
        write_readme(options.results, options.readme)
    return 0


def _search(options: argparse.Namespace) -> int:
    check_device(options.device)
    modules = _modules(options)
    for name in modules:
        join(name)
    streams = []
    for stream in streams_of(options):
        other = stream_of(stream).settings_from
        if other is None:
            streams.append(stream)
        else:
            print(f"{stream}: not searched, it takes its settings from {other}")
    if not streams:
        return 0
    pairs = fitting(streams, listed(options.methods, "--methods"))
    make_folder(options.out)
    chosen = _chosen(options.settings)
    writing = Lock()

    def one(pair: tuple[str, str]) -> None:
        stream, row = pair
        found = search(
            stream, row, out=options.out, dataset_root=options.dataset_root, device=options.device, modules=modules
        )
        print(f"{stream:16} {row:12} {found['validation_accuracy']:.4f}  {found['settings']}", flush=True)
        with writing:  # other searches run in other threads
            chosen.setdefault(stream, {})[row] = found
            write_json(options.settings, chosen, sort_keys=True)

    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(one, pairs))
    return 0


def _chosen(settings: Path) -> dict[str, Any]:
    """Return what earlier searches chose, by stream and row."""
    try:
        found = json.loads(settings.read_text()) if settings.exists() else {}
    except ValueError as error:
        raise ValueError(f"--settings {settings} is not a JSON file: {error}; name another file") from None
    if not isinstance(found, dict):
        raise ValueError(f"--settings {settings} has no settings by stream and row; name another file")
    return found


if __name__ == "__main__":
    sys.exit(main())
