"""Measure the costs of masks: times of training steps and evaluations, as ratios to the same dense network.

    python -m benchmarks.costs.speed --out benchmarks/results/speed.json

Dense and masked calls alternate in one process; a ratio is the median of the pairwise ratios, after a warm-up.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_supermask import MaskedModel
from avalanche_supermask.bits.rice import encode
from avalanche_supermask.selection import selection
from avalanche_supermask.strategies.clnp.entries import FREE, EntryKinds
from avalanche_supermask.strategies.clnp.slim import slim
from avalanche_supermask.strategies.clnp.units import find_units
from benchmarks.lib.command import device_name
from benchmarks.lib.networks import SlimResNet18, mlp
from benchmarks.lib.provenance import write_result

BASIS = 15  # number of masks of a mixture
WARM_UP = 5  # pairs that are not counted

Network = tuple[Callable[[], nn.Module], tuple[int, ...], int]  # creates the network; shape of a sample; batch size

NETWORKS: dict[str, Network] = {
    "LeNet-300-100, batch 128": (lambda: mlp(784, (300, 100), 10), (1, 28, 28), 128),
    "MLP 784-2000-2000-10, batch 128": (lambda: mlp(784, (2000, 2000), 10), (1, 28, 28), 128),
    "slim ResNet-18, batch 64": (lambda: SlimResNet18(10), (3, 32, 32), 64),
}


def ratio(
    masked: Callable[[], None], dense: Callable[[], None], repeats: int, sync: Callable[[], None] = lambda: None
) -> float:
    """Return the median of the pairwise ratios of two calls that alternate, after a warm-up."""

    def seconds(call: Callable[[], None]) -> float:
        sync()
        started = time.perf_counter()
        call()
        sync()
        return time.perf_counter() - started

    for _ in range(WARM_UP):
        masked()
        dense()
    return statistics.median(seconds(masked) / seconds(dense) for _ in range(repeats))


def measure(
    network: Network,
    *,
    repeats: int,
    device: str,
    autocast: torch.dtype | None = None,
    steps_only: bool = False,
) -> dict[str, float]:
    """Return the ratios of one network to the dense one: steps of each kind, and evaluations of a finished task.

    Args:
        network: network that is measured, as in `NETWORKS`.
        repeats: number of pairs per ratio.
        device: device on which both networks run.
        autocast: number type of `torch.autocast` for both networks; None (default): the type of the weights.
        steps_only: whether to leave out coefficient steps and free-unit steps (default False), for networks that need
            most of the memory.
    """
    make, shape, batch = network
    torch.manual_seed(0)
    x = torch.randn(batch, *shape, device=device)
    y = torch.randint(0, 10, (batch,), device=device)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    dense = make().to(device)
    model = MaskedModel(make(), seed=0)
    model.set_scores(model.fresh_scores(0))
    model.to(device)
    select = selection(model.masked_shapes, density=0.1)

    def step(net: nn.Module, *extra: Tensor) -> Callable[[], None]:
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)

        def call() -> None:
            optimizer.zero_grad()
            with casting():
                loss = nn.functional.cross_entropy(net(x, *extra), y)
            loss.backward()
            optimizer.step()

        return call

    def forward(net: nn.Module, *extra: Tensor) -> Callable[[], None]:
        @torch.no_grad()
        def call() -> None:
            with casting():
                net(x, *extra)

        return call

    def casting() -> torch.autocast:
        return torch.autocast(torch.device(device).type, dtype=autocast, enabled=autocast is not None)

    sync = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    found: dict[str, float] = {}
    model.begin(0, 0)
    model.learn_scores(select)
    found["mask step"] = ratio(step(model, labels), step(dense), repeats, sync)
    model.learn_weights(model.current_mask())
    found["weight step"] = ratio(step(model, labels), step(dense), repeats, sync)
    model.commit()
    model.eval()
    dense.eval()
    found["evaluation"] = ratio(forward(model, labels), forward(dense), repeats, sync)
    weights = sum(w.numel() for w in model.subnetworks.frozen.values())
    found["mask bytes over weights / 8"] = model.subnetworks.masks.nbytes / (weights / 8)

    if steps_only:
        return found

    for _ in range(BASIS):
        model.set_scores(model.fresh_scores(len(model.subnetworks.mixtures.basis)))
        model.subnetworks.add_to_basis({name: select.mask(name, s) for name, s in model.subnetworks.scores.items()})
    weight = next(iter(model.subnetworks.frozen.values()))
    model.subnetworks.mixtures.allocate(model.masked_names, weight, BASIS)
    model.train().begin(1, 1)
    model.learn_coefficients()
    dense.train()
    found[f"coefficient step, n = {BASIS}"] = ratio(step(model, labels + 1), step(dense), repeats, sync)

    net = make().to(device)
    units = find_units(net, (x[:2],), masked=frozenset(name for name, _ in net.named_parameters()))
    pruned = MaskedModel(net, seed=0, init="keep", mask="all").to(device)
    claimed = torch.where(torch.arange(units.count) % 5 == 0, 0, FREE)  # A fifth of the units is claimed.
    partition = EntryKinds(units, pruned.masked_shapes)
    pruned.begin(0, 0)
    free, visible, kept = (
        {name: entry.to(device) for name, entry in entries.items()}
        for entries in (partition.free(claimed, first_task=False), partition.visible(claimed), partition.kept(claimed))
    )
    pruned.learn_weights(free, mask=visible)
    found["free-unit step"] = ratio(step(pruned, labels), step(dense), repeats, sync)
    pruned.learn_weights(free, mask=kept)
    pruned.commit()
    pruned.eval()
    dense.eval()
    small = slim(pruned.export(0).cpu(), (x[:2].cpu(),), units, claimed == 0).to(device)
    found["slim export, a fifth of the units"] = ratio(forward(small), forward(dense), repeats, sync)
    return found


def on_disk(weights: int = 266_200) -> dict[str, float]:
    """Return the bytes of a mask's code over the entropy bound ``n H(k) / 8``, by density, for n weights."""
    order = np.random.default_rng(0).permutation(weights)
    found = {}
    for density in (0.02, 0.05, 0.1, 0.5):
        mask = np.zeros(weights, dtype=bool)
        mask[order[: round(density * weights)]] = True
        bound = -weights * (density * math.log2(density) + (1 - density) * math.log2(1 - density)) / 8
        found[f"density {density:g}"] = len(encode(mask)) / bound
    return found


def main() -> None:
    """Measure all networks and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", type=device_name, help="cpu or cuda (default cpu)")
    parser.add_argument("--repeats", type=int, default=60, help="pairs a ratio (default 60)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed.json"), help="result file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: dict[str, dict[str, float]] = {}
    for name in NETWORKS:
        rows[name] = measure(NETWORKS[name], repeats=options.repeats, device=options.device)
        print(f"{name:34}", "  ".join(f"{key} {value:.2f}" for key, value in rows[name].items()), flush=True)
    allocator = {name: value for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")}
    content: dict[str, Any] = {
        "environment": allocator, "ratios to dense": rows, "mask on disk over its entropy": on_disk()
    }  # fmt: skip
    write_result(options.out, "benchmarks.costs.speed", sys.argv[1:], **content)


if __name__ == "__main__":
    main()
