"""Measure whether runs survive killed processes, and whether damaged files are detected.

    python -m benchmarks.faults.reliability --out benchmarks/results/reliability.json --page docs/reliability.md

*Kills*: a run learns SplitDigits with `CheckpointPlugin`. Each process is killed by SIGKILL at a random moment, unless
it finishes earlier, and the next process, with another seed, resumes from the checkpoint, until the run is complete.
The logits must equal those of an uninterrupted run, bit for bit.

*Damage*: a file written by `save` is damaged: a bit or a few bytes are changed, removed or inserted, or the end is cut
off. Loading it must raise an error or return exactly the same model.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from avalanche.training.supervised import EWC, Naive
from torch import Tensor, nn
from torch.optim import SGD

from avalanche_supermask import CachedTensors, CheckpointPlugin, load, maybe_load_checkpoint, methods, save
from benchmarks.lib.networks import mlp
from benchmarks.lib.provenance import provenance, write_result
from benchmarks.lib.streams import build_stream

__all__ = ["damaged", "kill_and_resume", "run", "survive_damage"]

METHODS = ("supsup", "exssnet", "clnp", "impresslearn", "ewc", "naive")
OPTIONS: dict[str, dict[str, Any]] = {
    "exssnet": {"kkt": "knn_best"},
    "clnp": {"finetune_epochs": 2, "margin": 0.05, "head": "gated"},
    "impresslearn": {"n_basis": 3},
}


def _network() -> nn.Module:
    return mlp(64, (100, 100), 2)


def _strategy(method: str, plugins: list[Any]) -> Any:
    common = {"train_epochs": 6, "train_mb_size": 32, "evaluator": None, "plugins": [*plugins, CachedTensors()]}
    if method in methods():
        return methods()[method](_network(), **OPTIONS.get(method, {}), **common)
    net = _network()
    kind, settings = (EWC, {"ewc_lambda": 10.0}) if method == "ewc" else (Naive, {})
    return kind(
        model=net,
        optimizer=SGD(net.parameters(), lr=0.05, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        **settings,
        **common,
    )


def run(method: str, checkpoint: str, logits: str, seed: int) -> None:
    """Learn the stream, from the checkpoint on if there is one, and write the logits of all tasks to a file."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    stream = build_stream("split-digits", seed=0)
    strategy, first = maybe_load_checkpoint(_strategy(method, [CheckpointPlugin(checkpoint)]), checkpoint)
    for experience in stream.train_stream[first:]:
        strategy.train(experience)
    x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = strategy.model.eval()
    with torch.no_grad():
        keys = model.task_keys if method in methods() else [None]
        found = torch.stack([model(x) if key is None else model(x, key) for key in keys])
    torch.save(found, logits + ".part")
    os.replace(logits + ".part", logits)


def kill_and_resume(method: str, *, kills: int, seed: int) -> dict[str, Any]:
    """Repeat a run whose processes are killed at random moments, until at least ``kills`` processes were killed.

    Returns:
        The number of kills, the number of completed runs, the number of runs with bit-identical logits, and the largest
        difference of a logit.
    """
    context, draw = mp.get_context("forkserver"), random.Random(seed)
    context.set_forkserver_preload(
        ["avalanche_supermask.strategies", "avalanche_supermask.saving.checkpoint_plugin", "benchmarks.lib.streams"]
    )

    def start(folder: str, seed: int) -> Any:
        process = context.Process(target=run, args=(method, f"{folder}/run.pkl", f"{folder}/logits.pt", seed))
        process.start()
        return process

    killed = runs = right = 0
    drift = 0.0
    with tempfile.TemporaryDirectory() as whole:
        start(whole, 0).join()  # A warm-up run, because the first process imports the modules.
        begun = time.perf_counter()
        Path(whole, "run.pkl").unlink()
        start(whole, 0).join()
        lasts = time.perf_counter() - begun
        expected: Tensor = torch.load(f"{whole}/logits.pt")
    while killed < kills:
        with tempfile.TemporaryDirectory() as folder:
            lives = 0
            while not Path(folder, "logits.pt").exists():
                # Only what comes before the first checkpoint depends on the seed.
                process = start(folder, 0 if not Path(folder, "run.pkl").exists() else 1000 + lives)
                process.join(draw.uniform(0.1, 1.0) * lasts)
                if process.is_alive():
                    os.kill(process.pid, signal.SIGKILL)
                    killed += 1
                process.join()
                lives += 1
            found = torch.load(f"{folder}/logits.pt")
        runs += 1
        right += int(torch.equal(found, expected))
        drift = max(drift, float((found - expected).abs().max()))
    return {"kills": killed, "runs": runs, "bit_identical": right, "drift": drift}


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Damage a file once at random: flip a bit, cut off the end, or insert, remove or change a few bytes."""
    place = rng.randrange(len(data))
    kind = rng.randrange(5)
    if kind == 0:
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    if kind == 1:
        return data[:place]
    if kind == 2:
        return data[:place] + rng.randbytes(rng.randrange(1, 9)) + data[place:]
    if kind == 3:
        return data[:place] + data[place + rng.randrange(1, 9) :]
    return data[:place] + rng.randbytes(min(8, len(data) - place)) + data[place + 8 :]


def survive_damage(*, files: int, seed: int) -> dict[str, int]:
    """Damage files written by `save` and load them; in a third of the files only the header is damaged.

    Returns:
        The number of files, and how many of them raised an error, were loaded as the same model, and were loaded as
        another model.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    strategy = _strategy("exssnet", [])
    for experience in build_stream("split-digits", seed=0).train_stream[:3]:
        strategy.train(experience)
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    answers = {key: strategy.model.eval()(x, key).detach() for key in strategy.model.task_keys}
    counts = {"files": files, "errors": 0, "same": 0, "wrong": 0}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        save(strategy.model, path)
        data = path.read_bytes()
        head = 8 + int.from_bytes(data[:8], "little")
        for i in range(files):
            path.write_bytes(damaged(data[:head], rng) + data[head:] if i % 3 == 0 else damaged(data, rng))
            try:
                loaded = load(path, _network())
            except ValueError:
                counts["errors"] += 1
                continue
            with torch.no_grad():
                same = all(torch.equal(loaded(x, key), before) for key, before in answers.items())
            counts["same" if same else "wrong"] += 1
    return counts


PAGE = """# Reliability

Generated by `{command}`, commit {commit}.

The first table is about runs of SplitDigits (five tasks, six epochs per task) with `CheckpointPlugin`. Each process
of a run is killed by SIGKILL at a random moment, unless it finishes earlier. Another process with another seed then
resumes from the checkpoint, until the run is complete:

| method | kills | runs completed | bit-identical to the uninterrupted run | largest difference of a logit |
| --- | --- | --- | --- | --- |
{rows}

Files written by `save` were damaged: a bit or a few bytes were changed, removed or inserted, or the end was cut off. Of
{files} damaged files, {errors} raised an error when they were loaded, {same} were loaded as exactly the same model
(this is possible when the damage changes only white space), and {wrong} were loaded as a wrong model.

Two kinds of checks are not in this table. Bad input has its own tests (`tests/test_plugin.py`,
`tests/model/test_masked_model.py`), and so has the drift of old tasks under every optimizer and companion plugin
(`tests/test_contract.py`).
"""


def main() -> None:
    """Run both measurements and write the result file, and the page if `--page` is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="at least, over all methods (default %(default)s)")
    parser.add_argument("--files", type=int, default=1500, help="damaged (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and damage (default %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    parser.add_argument("--page", type=Path, help="also write this Markdown page")
    options = parser.parse_args()
    each = -(-options.kills // len(METHODS))
    rows = {}
    for method in METHODS:
        rows[method] = kill_and_resume(method, kills=each, seed=options.seed)
        print(method, rows[method], flush=True)
    damage = survive_damage(files=options.files, seed=options.seed)
    print(damage)
    write_result(options.out, "benchmarks.faults.reliability", sys.argv[1:], kills=rows, damage=damage)
    if options.page:
        origin = provenance("benchmarks.faults.reliability", sys.argv[1:])
        lines = [
            f"| {name} | {row['kills']} | {row['runs']} | {row['bit_identical']} | {row['drift']:g} |"
            for name, row in rows.items()
        ]
        page = PAGE.format(command=origin["command"], commit=origin["commit"][:12], rows="\n".join(lines), **damage)
        options.page.write_text(page)


if __name__ == "__main__":
    main()
