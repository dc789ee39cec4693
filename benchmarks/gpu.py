"""Run all measurements that need a GPU, the most important first, within a given time.

    python -m benchmarks.gpu --minutes 9 --out runs/gpu

The first parts are the ratios of `benchmarks.costs.speed`, in float32 and under bfloat16 autocast. Then come the ratios
of a torchvision ResNet-18 at 224 pixels and a ViT-B/16, both with batches of 64, and then cells of the leaderboard. The
result of each part is written when the part ends. No part begins after the time is up; ``parts.json`` lists the parts
that were left out. ``--small`` runs tiny networks, also on a CPU, to try the script.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import resnet18, vit_b_16
from torchvision.models.vision_transformer import VisionTransformer

from benchmarks.costs import speed
from benchmarks.lib.command import device_name
from benchmarks.lib.networks import mlp
from benchmarks.lib.provenance import write_json, write_result

Networks = dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]]

LARGE: Networks = {
    "ResNet-18, 224 pixels, batch 64": (lambda: resnet18(num_classes=10), (3, 224, 224), 64),
    "ViT-B/16, batch 64": (lambda: vit_b_16(num_classes=10), (3, 224, 224), 64),
}
SMALL: Networks = {"MLP 36-8-10, batch 4": (lambda: mlp(36, (8,), 10), (1, 6, 6), 4)}
SMALL_LARGE: Networks = {
    "ViT, 8 pixels, batch 2": (lambda: VisionTransformer(8, 4, 1, 2, 8, 16, num_classes=10), (3, 8, 8), 2)
}


def main() -> None:
    """Run the parts until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="no part begins later (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the result files")
    parser.add_argument("--device", default="cuda", help="(default %(default)s)")
    parser.add_argument("--repeats", type=int, default=30, help="pairs a ratio (default %(default)s)")
    parser.add_argument("--streams", default="permuted-mnist,split-cifar100", help="of the leaderboard (default both)")
    parser.add_argument("--methods", default="supsup,exssnet", help="of the leaderboard (default %(default)s)")
    parser.add_argument("--dataset-root", type=Path, help="where torchvision keeps its data")
    parser.add_argument("--small", action="store_true", help="tiny networks, no leaderboard: tries the script itself")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: PyTorch finds no GPU here; --small --device cpu tries the script")
    try:
        device_name(options.device)
    except argparse.ArgumentTypeError as error:
        parser.error(f"--device: {error}")
    ends = time.monotonic() + 60 * options.minutes
    small, large = (SMALL, SMALL_LARGE) if options.small else (speed.NETWORKS, LARGE)
    parts: dict[str, Callable[[], Any]] = {
        "speed_float32": lambda: ratios("speed_float32", small, None, options),
        "speed_bfloat16": lambda: ratios("speed_bfloat16", small, torch.bfloat16, options),
        "large_float32": lambda: ratios("large_float32", large, None, options),
        "large_bfloat16": lambda: ratios("large_bfloat16", large, torch.bfloat16, options),
    }
    if not options.small:
        parts["leaderboard"] = lambda: leaderboard(options, ends)
    said: dict[str, str] = {}
    for name, run in parts.items():
        if time.monotonic() >= ends:
            said[name] = "left out: the time was up"
        else:
            started = time.monotonic()
            try:
                run()
                said[name] = f"{time.monotonic() - started:.0f} s"
            except subprocess.TimeoutExpired:
                said[name] = "stopped: the time was up"
            except (
                RuntimeError,
                subprocess.SubprocessError,
            ) as error:  # The other parts run nevertheless.
                said[name] = f"failed: {str(error).splitlines()[0]}"
        print(name, said[name], flush=True)
        options.out.mkdir(parents=True, exist_ok=True)
        write_json(options.out / "parts.json", said)
    if any(word.startswith("failed") for word in said.values()):
        sys.exit(1)


def ratios(part: str, networks: Networks, autocast: torch.dtype | None, options: argparse.Namespace) -> None:
    """Measure steps and evaluations, relative to the dense networks; the file is written after each network."""
    rows: dict[str, dict[str, float]] = {}
    for name, network in networks.items():
        rows[name] = speed.measure(
            network,
            repeats=options.repeats,
            device=options.device,
            autocast=autocast,
            steps_only=part.startswith("large"),
        )
        said = {"autocast": None if autocast is None else str(autocast), "ratios to dense": rows}
        write_result(options.out / f"{part}.json", "benchmarks.gpu", sys.argv[1:], **said)


def leaderboard(options: argparse.Namespace, ends: float) -> None:
    """Run cells of the leaderboard one after another until the time is up; finished cells are kept."""
    command = [
        sys.executable, "-m", "leaderboard", "run", "--streams", options.streams, "--methods", options.methods,
        "--device", options.device, "--workers", "1", "--out", str(options.out / "leaderboard"),
    ]  # fmt: skip
    if options.dataset_root is not None:
        command += ["--dataset-root", str(options.dataset_root)]
    subprocess.run(command, check=True, timeout=max(1.0, ends - time.monotonic()))


if __name__ == "__main__":
    main()
