"""What the commands ``run``, ``add``, ``report`` and ``search`` do with their arguments."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from avalanche_supermask.strategy import check_device
from benchmarks.lib.provenance import write_json
from benchmarks.lib.streams import stream_of
from leaderboard.aggregate import comparisons, load_results
from leaderboard.arguments import check_counts, check_tasks, fitting, listed, make_folder, seeds_of, streams_of
from leaderboard.cell import Cell, settings_of
from leaderboard.external import join
from leaderboard.forecast import forecast
from leaderboard.page import write_page
from leaderboard.pool import run_cells
from leaderboard.report import table, write_readme, write_report
from leaderboard.search import search

__all__ = ["execute"]

PRINTED = ("method", "accuracy", "forgetting", "BWT", "drift", "bytes per task", "bytes in all", "time")


def execute(options: argparse.Namespace) -> int:
    """Run the command that the arguments name, and return the exit status.

    Raises:
        ValueError: an argument is wrong.
    """
    check_counts(options)
    return {"run": _run, "add": _run, "report": _report, "search": _search}[options.command](options)


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
