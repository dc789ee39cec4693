"""Runs several cells at a time, each in its own process. A cell that fails does not stop the others.

On a CPU, processes fork from a server that has imported Avalanche once. Each result is first written to a temporary
file and then moved to its place. A result file that exists is therefore complete, and the same command after a crash
runs only the missing cells. If two runs share a folder, each cell is computed by one of them: the other waits for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing as mp
import signal
import traceback
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.lib.provenance import write_json
from leaderboard.cell import Cell, run_cell
from leaderboard.external import join

__all__ = ["attempt", "emptied", "is_done", "run_cells"]


def is_done(cell: Cell, out: Path) -> bool:
    """Return whether a result of the cell with the same configuration exists."""
    try:
        found = json.loads((out / cell.path).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and bool(found.get("config") == cell.config())


def run_cells(
    cells: Sequence[Cell],
    *,
    out: Path,
    workers: int,
    dataset_root: Path | None = None,
    device: str = "cpu",
    modules: Sequence[str] = (),
    quiet: bool = False,
) -> dict[str, str]:
    """Run cells that have no result yet.

    Args:
        cells: what to run, in this order.
        out: output folder.
        workers: number of cells that run at the same time.
        dataset_root: where torchvision keeps its data.
        device: device on which cells compute.
        modules: import paths of methods of other packages, for `leaderboard.external.join` in every cell's process.
        quiet: True shows no progress bar and writes no TensorBoard logs, which else go to ``out/tb``.

    Returns:
        The traceback of each failed cell, by the cell's path.
    """
    context = _context(device)
    waiting = [cell for cell in cells if not is_done(cell, out)]
    running: dict[int, tuple[BaseProcess, Cell]] = {}
    failed: dict[str, str] = {}
    done = len(cells) - len(waiting)
    progress = tqdm(total=len(cells), initial=done, unit="cell", desc="leaderboard", disable=quiet)
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                cell = waiting.pop(0)
                arguments = (cell, out, dataset_root, device, tuple(modules), quiet)
                process = context.Process(target=_write_result, args=arguments, daemon=True)
                process.start()
                running[process.sentinel] = (process, cell)
            for sentinel in wait(list(running)):
                process, cell = running.pop(int(sentinel))  # type: ignore[call-overload]
                process.join()
                if process.exitcode != 0:
                    failed[str(cell.path)] = _read_error(cell, out, process.exitcode)
                progress.set_postfix_str(f"{cell.stream} {cell.method} {cell.seed}", refresh=False)
                progress.update()
    finally:  # on Ctrl-C, running cells are lost, and written results stay
        for process, _ in running.values():
            process.terminate()
        progress.close()
    return failed


def _context(device: str) -> ForkServerContext | SpawnContext:
    """How the processes of cells start; a process that is forked after its parent counted the GPUs cannot use them."""
    if device != "cpu":
        return mp.get_context("spawn")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["leaderboard.cell"])
    return context


def attempt(
    cell: Cell, *, dataset_root: Path | None, tb_dir: Path | None, device: str, modules: Sequence[str]
) -> dict[str, Any] | str:
    """Run a cell and return its result, or the traceback of its failure.

    Args:
        cell: the cell to run.
        dataset_root: where torchvision keeps its data.
        tb_dir: folder for TensorBoard logs; None writes no logs.
        device: device on which the cell computes.
        modules: import paths of methods of other packages, for `leaderboard.external.join` before the run.
    """
    try:
        # Upstream bypasses warning filters and repeats its warnings. The result stores each message once.
        with warnings.catch_warnings(record=True) as caught:
            for name in modules:
                join(name)
            result = run_cell(cell, dataset_root=dataset_root, tb_dir=tb_dir, device=device)
    except BaseException:
        return traceback.format_exc()
    return {**result, "warnings": sorted({str(warning.message) for warning in caught})}


def emptied(folder: Path) -> Path:
    """Delete the event files of an earlier attempt and return the folder; TensorBoard would draw both curves."""
    for old in folder.glob("events.*"):
        old.unlink()
    return folder


def _write_result(
    cell: Cell, out: Path, dataset_root: Path | None, device: str, modules: Sequence[str], quiet: bool
) -> None:
    target = out / cell.path
    target.parent.mkdir(parents=True, exist_ok=True)
    error = target.with_suffix(".error")
    with _alone(target.with_suffix(".lock")):
        if is_done(cell, out):  # another run into this folder has finished the cell
            return
        error.unlink(missing_ok=True)
        tb_dir = None if quiet else emptied(out / "tb" / cell.path.with_suffix(""))
        result = attempt(cell, dataset_root=dataset_root, tb_dir=tb_dir, device=device, modules=modules)
        if isinstance(result, str):
            error.write_text(result)
            raise SystemExit(1)
        write_json(target, result)


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Context that one process at a time can enter; the system frees the lock of a process that was killed."""
    with open(lock, "w") as held:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(held, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _read_error(cell: Cell, out: Path, exitcode: int | None) -> str:
    error = (out / cell.path).with_suffix(".error")
    if error.exists():
        return error.read_text()
    if exitcode is not None and exitcode < 0:
        return (
            f"the process was killed by {signal.Signals(-exitcode).name}, for example because memory ran out; the same "
            "command runs the cell again"
        )
    return f"the process ended with exit code {exitcode}; what it printed is above"
