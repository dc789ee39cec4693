"""Write the page of the costs of masks, ``docs/speed.md``, from the result files.

    python -m benchmarks.costs.speed_page --results benchmarks/results --page docs/speed.md

Every measured ratio in its tables is read from a file. The targets are the ratios that the project set itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NETWORKS = 3  # Each tuple of targets has one value per network, in the order of the tables' columns.
LARGE = 4  # columns of the table of large networks: two networks, each in two types of numbers
ON_CPU = {
    "mask step": (1.2, 1.2, 1.02),
    "weight step": (1.1, 1.08, 1.01),
    "free-unit step": (1.1, 1.08, 1.01),
    "coefficient step, n = 15": (1.4, 1.25, 1.02),
    "evaluation": (1.01, 1.01, 1.005),
    "mask bytes over weights / 8": (1.05,) * NETWORKS,
    "slim export, a fifth of the units": (None,) * NETWORKS,
}
ON_GPU = {
    **ON_CPU,
    "mask step": (1.25, 1.25, 1.1),
    "weight step": (1.1, 1.1, 1.05),
    "free-unit step": (1.1, 1.1, 1.05),
    "coefficient step, n = 15": (1.5, 1.5, 1.3),
    "evaluation": (1.02,) * NETWORKS,
}
MANY = {
    "mixed batch": 1.3,
    "one more after 2500 tasks": 1.05,
    "import": 1.2,
    **{f"one-shot, {tasks} tasks": 2.0 for tasks in (10, 100, 1000, 2500)},
    **{f"the first batch, {tasks} tasks": None for tasks in (10, 100, 1000, 2500)},
}
DISK = {"density 0.02": 1.05, "density 0.05": 1.05, "density 0.1": 1.12, "density 0.5": 1.01}

LENET = 784 * 300 + 300 * 100 + 100 * 10  # number of weights of LeNet-300-100

PAGE = """# What masks cost

Every number is a ratio, measured in one process by calls that alternate. The number in brackets, where there is one, is
the largest ratio that the project set itself as a target; a missed target is **bold**. The page is written by
`python -m benchmarks.costs.speed_page` from the linked result files.

**The tables of the allocator and of many tasks are older than the others.** In the versions that they measured,
`functional_call` called the network, and each layer had its own operators.

## A step, an evaluation, a mask

A mask step trains scores, a weight step trains weights under a fixed mask, a free-unit step trains the units that no
earlier task owns (CLNP), and a coefficient step trains the coefficients of a mixture of n masks (ImpressLearn). The
ratios compare with the same dense network and the same optimizer, on {cpu} ([file](../benchmarks/results/speed.json),
commit {cpu_commit}):

{cpu_table}

The next table is the same with `MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_MMAP_THRESHOLD_=1073741824` in the environment
([file](../benchmarks/results/speed_malloc.json), commit {malloc_commit}). Without these settings, glibc returns the
memory of large temporary tensors to the system at the end of a step, and requests it again, page by page, in the next
step. The settings are useful for wide networks on a CPU.

{malloc_table}

On {gpu} ([file](../benchmarks/results/speed_cuda.json), commit {gpu_commit}):

{gpu_table}

The same under bfloat16 autocast, for both networks ([file](../benchmarks/results/speed_cuda_bfloat16.json)):

{gpu_bfloat16_table}

Networks of a usual size, with batches of 64 images of 224 pixels, in float32
([file](../benchmarks/results/speed_cuda_large.json)) and under bfloat16 autocast
([file](../benchmarks/results/speed_cuda_large_bfloat16.json)):

{large_table}

## Many tasks

The network is LeNet-300-100 on the same CPU, with numba ([file](../benchmarks/results/scaling.json)).

- "Mixed batch" is a batch of 128 samples of 8 tasks, against 8 dense passes of 16 samples.
- "One more" is `SupSup.train()` on 50 batches in a model that has already learned so many tasks, against the same in a
  fresh model.
- "Import" is the import of the module of packed masks, against `import torch`.
- "One-shot" is the inference of the task of a batch, against one forward pass, one backward pass and one read of all
  packed bits. The first batch also computes the superposition of the tasks; later batches reuse it.

{many_table}

The next table compares Avalanche's `train()`, with accuracy and loss metrics, with a bare PyTorch loop
([file](../benchmarks/results/data_path.json)). "In memory" uses the plugin `CachedTensors`:

{path_table}

## Masks on disk

The table shows bytes over the entropy bound, from [the same file](../benchmarks/results/speed.json) as the first table:

{disk_table}

## Why the ratios are not lower

**A mask step of an MLP** is limited by memory traffic, not by arithmetic. Per weight, a dense step with Adam moves
about 40 bytes and does {dense_flops} operations at batch 128. The exact choice of k weights by magnitude, the
masking, and the gradient of the scores move about 80 bytes more, one pass after another. With numba (extra `fast`) they
are three compiled passes that move 32 bytes: the first reads the scores and counts; the second reads scores and weights
and writes effective weights; the third reads gradient, weights and scores, and writes the gradient of the scores. A
convolution uses every weight many times per sample, so these passes are a small part of its step.

**A coefficient step** tabulates the sums of all subsets of the fifteen masks, at most 32,768 sums per layer, and looks
one up for each weight. The backward pass adds the gradient up under the same indices. That makes two random memory
accesses per weight, which vector instructions do not speed up. A fifth of all weights is in none of fifteen masks of
density 0.1. Their gradients are added to the same sum one after another, because a different order could change its
bits. With numba, the look-up is one loop and the addition is one loop. The cost does not depend on the batch size, and
LeNet's dense step does little other work per weight.

**Evaluation** of a finished task calls the dense network. The task's tensors are written into the modules before the
call, and the modules' own tensors are put back after it. Evaluation dispatches the same operators as the dense network,
and one copy of the buffers that modules outside PyTorch may change. Repeated calls of a task take a shorter path,
which checks only what may have changed. The remaining cost is some tens of microseconds of Python, which is
visible where a forward pass takes a millisecond.

**A mixed batch** is sorted by task, and the outputs are put back in order. It reads eight sets of weights (8.5 MB),
while the dense passes read one (1.06 MB) that stays in the cache. Eight plain networks would read as much. The
effective weights of the most recently used tasks are kept, up to 64 MiB.

**One-shot inference** reads all masks twice for the first batch, once for the superposition and once to project the
gradient on each mask, and once for each later batch. The superposition counts bits with adders on whole words. The
projection adds up the entries of the gradient that a mask selects: {weights:,} additions per task, while reading the
bits of a mask takes {words:,} words. Vector instructions make 8 or 16 additions at once, so a task costs several times
the time of reading its bits, and this remains where there are many tasks. It would be several times faster to use
four bits as an index to a table of sums within a register, but neither numpy nor numba can express that. Without numba
the bits are unpacked to floats first.

**On a GPU** the three networks of the tables are so small that the host needs more time to launch their operators than
the GPU to compute them. Therefore the number of operators matters, and tests count it: whatever the number of layers, a
mask step dispatches at most 13 operators more than the dense step, a weight step or free-unit step at most 2, and a
coefficient step at most 40. An evaluation dispatches none, and copies the buffers of modules outside PyTorch. One sort
chooses the masks of all layers, and one table mixes the masks of all layers. From the third step on, a CUDA graph
repeats these operators by one launch, if the masked weights have at most 2^23 entries. What remains is the host's time
in Python, which a small network does not hide.
"""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="(default %(default)s)")
    parser.add_argument("--page", type=Path, default=Path("docs/speed.md"), help="(default %(default)s)")
    options = parser.parse_args()
    options.page.write_text(page(options.results))
    print(options.page)


def page(results: Path) -> str:
    """Return the text of the page, made from the result files in a folder."""
    speed, malloc, cuda, bfloat16, large, large_bfloat16, scaling, path = (
        json.loads((results / f"{name}.json").read_text())
        for name in (
            "speed", "speed_malloc", "speed_cuda", "speed_cuda_bfloat16", "speed_cuda_large",
            "speed_cuda_large_bfloat16", "scaling", "data_path",
        )
    )  # fmt: skip
    loops = path["ratios to a bare loop"]
    return PAGE.format(
        cpu=_machine(speed),
        cpu_commit=speed["commit"][:12],
        cpu_table=_networks(speed["ratios to dense"], ON_CPU),
        malloc_commit=malloc["commit"][:12],
        malloc_table=_networks(malloc["ratios to dense"], ON_CPU),
        gpu=_machine(cuda),
        gpu_commit=cuda["commit"][:12],
        gpu_table=_networks(cuda["ratios to dense"], ON_GPU),
        gpu_bfloat16_table=_networks(bfloat16["ratios to dense"], ON_GPU),
        large_table=_networks(
            {
                f"{name.split(',')[0]}, {kind}": result["ratios to dense"][name]
                for name in large["ratios to dense"]
                for kind, result in (("float32", large), ("bfloat16", large_bfloat16))
            },
            dict.fromkeys(("mask step", "weight step", "evaluation"), (None,) * LARGE),
        ),
        many_table=_table(["", "ratio"], [[name, _cell(scaling["ratios"][name], most)] for name, most in MANY.items()]),
        path_table=_table(
            ["", *next(iter(loops.values()))],
            [
                [name, *(_cell(value, 1.25 if way == "in memory" else None) for way, value in row.items())]
                for name, row in loops.items()
            ],
        ),
        disk_table=_table(
            ["", "ratio"],
            [[name, _cell(speed["mask on disk over its entropy"][name], most)] for name, most in DISK.items()],
        ),
        dense_flops=6 * 128,
        weights=LENET,
        words=-(-LENET // 64),
    )


def _networks(rows: Mapping[str, Mapping[str, float]], targets: Mapping[str, Sequence[float | None]]) -> str:
    found = list(rows.values())
    lines = [
        [step, *(_cell(row[step], most) for row, most in zip(found, asked, strict=True))]
        for step, asked in targets.items()
    ]
    return _table(["", *rows], lines)


def _cell(value: float, most: float | None) -> str:
    """Format a ratio to two decimals, followed by its target, if there is one; a missed target is bold."""
    if most is None:
        return f"{value:.2f}"
    shown = f"{value:.2f}" if round(value, 2) <= most else f"**{value:.2f}**"
    return f"{shown} ({most:g})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _machine(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    name = machine.get("accelerator") or machine["processor"]
    threads = "" if machine.get("accelerator") else f", {machine['threads']} thread"
    return f"{name}{threads}, PyTorch {result['versions']['torch']}"


if __name__ == "__main__":
    main()
