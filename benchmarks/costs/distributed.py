"""Measure training in several processes: speed, accuracy, and whether runs survive killed processes.

    python -m benchmarks.costs.distributed --out benchmarks/results/distributed.json

*Speed*: the training steps (whole batches) per second of SupSup are measured in turn in one process and in two
processes that share each batch, including the commit of the task. Results are medians over rounds. Each process has one
thread.

*Accuracy*: one process with batches of 32 is compared with two processes with 16 samples each, on SplitDigits, seed by
seed.

*Kills*: SplitDigits is learned in two processes with `CheckpointPlugin`. One process or both are killed by SIGKILL at a
random moment, and a new group resumes, until the run is complete. Its model must equal that of an uninterrupted run,
bit for bit.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from avalanche.benchmarks import tensors_benchmark
from torch import nn

from avalanche_supermask import CachedTensors, CheckpointPlugin, maybe_load_checkpoint, methods
from avalanche_supermask.distributed.digests import digest
from benchmarks.lib.accuracy import accuracy
from benchmarks.lib.networks import SlimResNet18, mlp
from benchmarks.lib.provenance import write_result
from benchmarks.lib.streams import build_stream

__all__ = ["accuracies", "kill_and_resume", "speed", "start_group"]

OPTIONS: dict[str, dict[str, Any]] = {
    "supsup": {"mask_lr": 0.02},
    "exssnet": {"mask_lr": 0.02, "weight_lr": 0.01, "kkt": "knn_best"},
    "clnp": {"finetune_epochs": 2, "margin": 0.05},
    "impresslearn": {"n_basis": 3, "mask_lr": 0.02},
}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int]] = {
    # network, shape of a sample, whole batch, steps
    "wide MLP 784-2000-2000-10": (lambda: mlp(784, (2000, 2000), 10), (784,), 256, 8),
    "slim ResNet-18 (20 channels)": (lambda: SlimResNet18(10), (3, 32, 32), 64, 6),
}


# ---------------------------------------------------------------------- groups


def start_group(size: int, function: Callable[..., Any], folder: str, *arguments: Any) -> list[Any]:
    """Start processes that run ``function(rank, folder, *arguments)`` in one gloo group and store its results."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["avalanche_supermask.strategies", "avalanche_supermask.saving.checkpoint_plugin", "benchmarks.lib.streams"]
    )
    meeting_place = tempfile.mktemp(dir=folder)
    group = [
        context.Process(target=_member, args=(rank, size, meeting_place, function, folder, arguments))
        for rank in range(size)
    ]
    for process in group:
        process.start()
    return group


def run_group(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run a function in a group of processes and return the result of every process, by rank."""
    with tempfile.TemporaryDirectory() as folder:
        for process in start_group(size, function, folder, *arguments):
            process.join()
        return [torch.load(_result(folder, rank), weights_only=False) for rank in range(size)]


def _member(
    rank: int, size: int, meeting_place: str, function: Callable[..., Any], folder: str, arguments: Any
) -> None:
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", f"file://{meeting_place}", timedelta(minutes=5), size, rank)
    found = function(rank, folder, *arguments)
    torch.save(found, _result(folder, rank) + ".part")
    os.replace(_result(folder, rank) + ".part", _result(folder, rank))


def _result(folder: str, rank: int) -> str:
    return f"{folder}/result.{rank}"


# ---------------------------------------------------------------------- speed


def speed(network: str, *, rounds: int) -> dict[str, Any]:
    """Return the whole batches per second of one process and of two, and the median ratio of neighbouring rounds."""
    alone, together = [], []
    for _ in range(rounds):
        alone.append(run_group(1, _steps_per_second, network, 1)[0])
        together.append(run_group(2, _steps_per_second, network, 2)[0])
    return {
        "batch": NETWORKS[network][2],
        "steps_per_second": {"1": statistics.median(alone), "2": statistics.median(together)},
        "ratio": statistics.median(b / a for a, b in zip(alone, together, strict=True)),
        "load_average": os.getloadavg()[1],  # runnable processes of the whole machine, mean of the last five minutes
    }


def _steps_per_second(rank: int, folder: str, network: str, size: int) -> float:
    """Return the steps per second of the second task; the first task is a warm-up."""
    make, shape, batch, steps = NETWORKS[network]
    torch.manual_seed(0)
    data = [(torch.randn((batch * steps, *shape)), torch.arange(batch * steps) % 10)] * 2
    stream = tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=[0, 1])
    strategy = _supsup(make(), batch // size)
    for experience in stream.train_stream:
        begun = time.perf_counter()
        strategy.train(experience)
    return steps / (time.perf_counter() - begun)


def _supsup(net: nn.Module, batch: int) -> Any:
    return methods()["supsup"](net, train_mb_size=batch, evaluator=None, plugins=[CachedTensors()], seed=0)


# ---------------------------------------------------------------------- accuracy


def accuracies(method: str, *, size: int, seeds: list[int]) -> list[float]:
    """Return the mean accuracy after the last task of SplitDigits by seed; ``size`` processes share batches of 32."""
    found: list[list[float]] = run_group(size, _accuracies, method, size, seeds)
    assert all(each == found[0] for each in found)
    return found[0]


def _accuracies(rank: int, folder: str, method: str, size: int, seeds: list[int]) -> list[float]:
    return [_accuracy(method, size, seed) for seed in seeds]


def _accuracy(method: str, size: int, seed: int) -> float:
    torch.manual_seed(seed)
    stream = build_stream("split-digits", seed=seed)
    torch.manual_seed(seed)
    strategy = _on_digits(method, size, [])
    for experience in stream.train_stream:
        strategy.train(experience)
    return statistics.fmean(accuracy(strategy.model, experience) for experience in stream.test_stream)


def _on_digits(method: str, size: int, plugins: list[Any]) -> Any:
    return methods()[method](
        mlp(64, (100, 100), 2), train_mb_size=32 // size, train_epochs=6, evaluator=None,
        plugins=[*plugins, CachedTensors()], **OPTIONS[method],
    )  # fmt: skip


# ---------------------------------------------------------------------- kills


def kill_and_resume(method: str, *, kills: int, seed: int) -> dict[str, int]:
    """Repeat runs of two processes, of which one or both are killed at random, until at least ``kills`` kills occurred.

    Returns:
        The numbers of kills of one process and of both, of completed runs, and of runs with the correct bits in both
        processes.
    """
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        _wait(start_group(2, _resumable, folder, method, 0))  # A warm-up run: the first group imports modules.
        os.unlink(f"{folder}/run.pkl")
        begun = time.perf_counter()
        _wait(start_group(2, _resumable, folder, method, 0))
        lasts = time.perf_counter() - begun
        expected = _results(folder)
    counts = {"kills_of_one": 0, "kills_of_both": 0, "runs": 0, "bit_identical": 0}
    while counts["kills_of_one"] + counts["kills_of_both"] < kills:
        with tempfile.TemporaryDirectory() as folder:
            lives = 0
            while not all(Path(_result(folder, rank)).exists() for rank in range(2)):
                # Only what comes before the first checkpoint depends on the seed.
                group = start_group(
                    2, _resumable, folder, method, 1000 + lives if Path(folder, "run.pkl").exists() else 0
                )
                group[0].join(draw.uniform(0.1, 1.0) * lasts)
                victims = draw.choice([group[:1], group[1:], group])
                alive = all(process.is_alive() for process in group)
                if alive:
                    for process in victims:
                        os.kill(process.pid, signal.SIGKILL)
                    counts["kills_of_both" if len(victims) == 2 else "kills_of_one"] += 1
                _wait(group)
                lives += 1
                if not alive and not Path(_result(folder, 0)).exists():
                    raise RuntimeError(Path(folder, "errors.0").read_text())
            counts["runs"] += 1
            counts["bit_identical"] += int(_results(folder) == expected)
    return counts


def _resumable(rank: int, folder: str, method: str, seed: int) -> bytes:
    """Learn the stream, from the checkpoint of rank 0 on if there is one."""
    # If the other process is killed, this process fails at the next exchange; its error goes to the file.
    sys.stderr = Path(folder, f"errors.{rank}").open("w")  # noqa: SIM115
    torch.manual_seed(seed)
    stream = build_stream("split-digits", seed=0)
    torch.manual_seed(seed)
    strategy = _on_digits(method, 2, [CheckpointPlugin(f"{folder}/run.pkl")])
    strategy, first = maybe_load_checkpoint(strategy, f"{folder}/run.pkl")
    for experience in stream.train_stream[first:]:
        strategy.train(experience)
    return digest(strategy.model.state_dict())


def _results(folder: str) -> list[bytes]:
    return [torch.load(_result(folder, rank), weights_only=False) for rank in range(2)]


def _wait(group: list[Any]) -> None:
    for process in group:
        process.join()


def main() -> None:
    """Run all measurements; the result file is written after each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="of speed (default %(default)s)")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="of accuracy (default %(default)s)")
    parser.add_argument("--kills", type=int, default=10, help="for each method (default %(default)s)")
    parser.add_argument("--methods", default="supsup,exssnet,clnp,impresslearn", help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    options = parser.parse_args()
    seeds, names = [int(seed) for seed in options.seeds.split(",")], [n for n in options.methods.split(",") if n]
    found: dict[str, Any] = {"speed": {}, "accuracy": {}, "kills": {}}

    def keep(part: str, name: str, value: Any) -> None:
        found[part][name] = value
        print(part, name, value, flush=True)
        write_result(options.out, "benchmarks.costs.distributed", sys.argv[1:], **found)

    for network in NETWORKS if options.rounds else ():
        keep("speed", network, speed(network, rounds=options.rounds))
    for method in names:
        one, two = (accuracies(method, size=size, seeds=seeds) for size in (1, 2))
        differences = [b - a for a, b in zip(one, two, strict=True)]
        error = statistics.stdev(differences) / len(seeds) ** 0.5 if len(seeds) > 1 else None
        keep("accuracy", method, {"1": one, "2": two, "mean": statistics.fmean(differences), "standard_error": error})
    for method in names if options.kills else ():
        keep("kills", method, kill_and_resume(method, kills=options.kills, seed=0))


if __name__ == "__main__":
    main()
