"""Compare a training step of sparse fine-tuning with one of full fine-tuning: time, and memory of the optimizer.

    python -m benchmarks.costs.pretrained_step --out benchmarks/results/pretrained_step.json

The networks are EfficientNet-Lite0 on 32 images of 64×64 and MiniLM on 32 texts of 16 tokens, with random data. A step
is a forward pass, a backward pass and a step of Adam (fused), in one thread. The steps alternate in one process, and
the results are medians of processor time. Running statistics are frozen.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from avalanche_supermask import MaskedModel, SparseFineTuningPlugin
from avalanche_supermask.functional import top_k_free
from avalanche_supermask.plugin import adopt_parameters
from avalanche_supermask.pretrained import left_out
from benchmarks.lib.provenance import write_result
from benchmarks.practice.pretrained.tasks import network


def step(call: Callable[[Tensor], Tensor], optimizer: Adam, x: Tensor, y: Tensor) -> float:
    """Return the processor time of one step, in seconds."""
    started = time.process_time()
    optimizer.zero_grad()
    nn.functional.cross_entropy(call(x), y).backward()
    optimizer.step()
    return time.process_time() - started


def sparse(net: nn.Module, density: float) -> tuple[MaskedModel, Adam]:
    """Return a model that trains its first task, with entries that are chosen at random, and its optimizer."""
    model = MaskedModel(net, init="keep", outside="base", statistics="frozen", exclude=left_out(net), seed=0)
    method = SparseFineTuningPlugin(density=density)
    method.prepare(model)
    optimizer = Adam([next(model.parameters())], fused=True)
    adopt_parameters(optimizer, model)
    model.begin(0)
    chosen = {
        name: top_k_free(torch.rand(model.masked_shapes[name]), torch.zeros(model.masked_shapes[name]).bool(), count)
        for name, count in method.counts(model).items()
    }
    model.learn_entries(chosen, mask=chosen)
    return model.train(), optimizer


def measured(board: str, repeats: int) -> dict[str, Any]:
    """Measure the steps of one network."""
    net = network(argparse.Namespace(board=board), 0)
    if board == "text":
        x = torch.stack([torch.randint(1000, 20000, (32, 16)), torch.ones(32, 16, dtype=torch.long)], dim=1)
    else:
        x = torch.randn(32, 3, 32, 32)
    y = torch.randint(0, 5, (32,))
    full = network(argparse.Namespace(board=board), 0).eval()
    calls: dict[str, tuple[Callable[[Tensor], Tensor], Adam]] = {"full": (full, Adam(full.parameters(), fused=True))}
    for density in (0.01, 0.1):
        model, optimizer = sparse(net, density)
        calls[f"sparse:{density}"] = (lambda x, model=model: model.forward_task(0, x)), optimizer  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, (call, optimizer) in calls.items():
            seconds[name].append(step(call, optimizer, x, y))
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    return {
        "network": board,
        "seconds": medians,
        "ratio": {name: value / medians["full"] for name, value in medians.items()},
        "optimizer_bytes": {
            name: sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.dim())
            for name, (_, optimizer) in calls.items()
        },
    }


def main() -> None:
    """Measure all networks and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="of each step (default %(default)s)")
    parser.add_argument("--boards", default="vision,text", help="comma-separated (default %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [measured(board, options.repeats) for board in options.boards.split(",")]
    write_result(options.out, "benchmarks.costs.pretrained_step", sys.argv[1:], rows=rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
