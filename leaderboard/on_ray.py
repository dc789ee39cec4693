"""Runs cells on a Ray cluster of one or more machines, with the interface of `leaderboard.pool`.

Each cell is a Ray task in its own process. The code of the project is sent to the workers. Results and TensorBoard logs
are sent back and written on this machine, so the machines need no shared disk; each needs the data at the same path. A
cell whose process or machine dies is tried again. A cell whose code fails is reported, as in the local pool.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from tqdm import tqdm

from benchmarks.lib.provenance import provenance, write_json
from leaderboard.cell import Cell
from leaderboard.pool import attempt, emptied, is_done

__all__ = ["run_cells_on_ray"]

_ROOT = Path(__file__).resolve().parents[1]
_CODE = ("avalanche_supermask", "benchmarks", "leaderboard")


def run_cells_on_ray(
    cells: Sequence[Cell],
    *,
    out: Path,
    workers: int,
    address: str | None = None,
    gpus_per_cell: float = 0.0,
    retries: int = 2,
    dataset_root: Path | None = None,
    device: str = "cpu",
    modules: Sequence[str] = (),
    quiet: bool = False,
) -> dict[str, str]:
    """Run cells that have no result yet.

    Args:
        cells: what to run, in this order.
        out: output folder on this machine.
        workers: number of cells that run at the same time, if Ray is started here. A running cluster starts as many
            cells as its cores and GPUs allow.
        address: address of a running cluster (``auto``, ``host:6379``, ``ray://host:10001``); None starts a cluster on
            this machine.
        gpus_per_cell: share of a GPU that each cell reserves; 0.25 puts four cells on one GPU.
        retries: how often a cell whose process or machine died is tried again.
        dataset_root: where torchvision keeps its data; the path is the same on every machine.
        device: device on which cells compute.
        modules: import paths for `leaderboard.external.join` in every cell's process; every machine must be able to
            import them.
        quiet: True shows no progress bar and writes no TensorBoard logs, which else go to ``out/tb``.

    Returns:
        The traceback of each failed cell, by the cell's path.

    Raises:
        ConnectionError: there is no cluster at this address.
    """
    waiting = [cell for cell in cells if not is_done(cell, out)]
    failed: dict[str, str] = {}
    if not waiting:
        return failed
    started_here = not ray.is_initialized()
    if started_here:
        _connect(address, workers)
    # One call per process: torch keeps settings and memory, and a cell must not inherit those of another cell.
    run = ray.remote(max_calls=1, max_retries=retries, num_cpus=1, num_gpus=gpus_per_cell)(_attempt)
    running = {run.remote(cell, dataset_root, device, tuple(modules), not quiet): cell for cell in waiting}
    done = len(cells) - len(waiting)
    progress = tqdm(total=len(cells), initial=done, unit="cell", desc="leaderboard on Ray", disable=quiet)
    try:
        while running:
            (finished,), _ = ray.wait(list(running), num_returns=1)
            cell = running.pop(finished)
            try:
                result, logs = ray.get(finished)
            except RayError as error:
                result, logs = f"after {retries + 1} tries: {error}", {}
            if isinstance(result, str):
                failed[str(cell.path)] = result
            else:
                _keep(cell, result, logs, out=out, device=device)
            progress.set_postfix_str(f"{cell.stream} {cell.method} {cell.seed}", refresh=False)
            progress.update()
    finally:  # on Ctrl-C, running cells are lost, and written results stay
        progress.close()
        if started_here:
            ray.shutdown()
    return failed


def _connect(address: str | None, workers: int) -> None:
    """Join the cluster, or start one here. Usage statistics are off unless the user's environment turns them on."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None:
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    else:
        _check_reachable(address)
        environment = {"py_modules": [str(_ROOT / name) for name in _CODE], "excludes": ["results"]}
        ray.init(address=address, runtime_env=environment, log_to_driver=False)


def _check_reachable(address: str) -> None:
    """Raise an error within seconds if nothing listens at the address; Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, ValueError) as error:
            raise ConnectionError(f"no Ray cluster at {address}: {error}") from None


def _attempt(
    cell: Cell, dataset_root: Path | None, device: str, modules: Sequence[str], logged: bool
) -> tuple[dict[str, Any] | str, dict[str, bytes]]:
    """Run a cell on a worker; return its result or its traceback, and its TensorBoard files by name."""
    with tempfile.TemporaryDirectory() as folder:
        tb_dir = Path(folder) if logged else None
        result = attempt(cell, dataset_root=dataset_root, tb_dir=tb_dir, device=device, modules=modules)
        files = {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
    return result, files


def _keep(cell: Cell, result: dict[str, Any], logs: dict[str, bytes], *, out: Path, device: str) -> None:
    """Write the logs and the result of a cell. The result is written last, because it marks the cell as done."""
    folder = emptied(out / "tb" / cell.path.with_suffix(""))
    for name, content in logs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    if result["commit"] == "unknown":  # a worker has the code, but not its Git history
        result["commit"] = provenance("leaderboard", cell.arguments(device))["commit"]
    (out / cell.path).parent.mkdir(parents=True, exist_ok=True)
    write_json(out / cell.path, result)
