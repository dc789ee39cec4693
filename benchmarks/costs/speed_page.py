"""The page that says what masks cost, written from the result files.

    python -m benchmarks.costs.speed_page --results benchmarks/results --page docs/speed.md

Every number on it is read from a file; what is asked of a ratio is the target that the project set itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NETWORKS = 3  # in the tables, in the order of the targets
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

LENET = 784 * 300 + 300 * 100 + 100 * 10  # weights

PAGE = """# What masks cost

Ratios, measured in one process by calls that alternate. In brackets, where there is one, what we asked of ourselves
at most; **bold** where that is missed. Written by `python -m benchmarks.costs.speed_page` from the result files that it
links.

**The first table is of today's code; the tables of a GPU, of the allocator and of many tasks are older.** When those
were measured, `functional_call` called the network, and each layer had operators of its own. Tests count what has
changed for a GPU: a mask step dispatches 13 operators more than the dense one, a weight or free-unit step 2, a
coefficient step at most 40, whatever the number of layers, and an evaluation none. No GPU has measured that yet.

## A step, an evaluation, a mask

Against the same dense network with the same optimizer, on {cpu} ([file](../benchmarks/results/speed.json), commit
{cpu_commit}):

{cpu_table}

The same with `MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_MMAP_THRESHOLD_=1073741824` in the environment
([file](../benchmarks/results/speed_malloc.json), commit {malloc_commit}): glibc else gives the memory of the larger
temporaries back to the system at the end of a step, and takes it anew, page by page, in the next. Worth setting for
wide networks on a CPU.

{malloc_table}

On {gpu} ([file](../benchmarks/results/speed_cuda.json), commit {gpu_commit}):

{gpu_table}

## Many tasks

LeNet-300-100 on the same CPU, with numba ([file](../benchmarks/results/scaling.json)). "Mixed batch" is 8 tasks in 128
samples against 8 dense passes of 16; "one more" is `SupSup.train()` on 50 batches after so many tasks against a fresh
model; "one-shot" is the inference of a batch's task against a forward and a backward pass and one read of all packed
bits. The first batch pays for the superposition of the tasks, which the next ones find done.

{many_table}

Avalanche's `train()` with accuracy and loss metrics, against a bare PyTorch loop
([file](../benchmarks/results/data_path.json)):

{path_table}

## Masks on disk

Bytes over the entropy bound, [the same file](../benchmarks/results/speed.json) as the first:

{disk_table}

## Why not less

**A mask step of an MLP** is bound by memory, not arithmetic. Per weight, a dense step with Adam moves some 40 bytes,
and does {dense_flops} operations at batch 128. Choosing exactly k by magnitude, masking, and the gradient of the
scores move about 80 more, pass by pass; with numba (extra `fast`) they are three compiled passes that move 32: scores
in, to count; scores and weights in, weights out; gradient, weights and scores in, gradient out. A convolution uses
every weight many times a sample, so that the same passes vanish in it.

**A coefficient step** tabulates the sums that fifteen masks can have, at most 32,768 a layer, looks each weight up, and
adds the gradient up by the same numbers backwards: two random accesses a weight, which no vector instruction makes at
once. A fifth of all weights is in none of fifteen masks of density 0.1 and adds to the same place, one after the other,
because the order of a sum is part of its bits. With numba each is one loop. They cost the same whatever the batch, and
LeNet's dense step does little else with a weight.

**Evaluation** of a finished task is the dense network's, called with the task's tensors written into the modules and
taken out again. It dispatches no operator that the dense network does not, except a copy of each buffer that a module
which is not PyTorch's own may move. A task that answers again takes a short way, on which only what could have changed
is looked at. What is left is some tens of microseconds of Python, which show where a forward pass takes a millisecond.

**A mixed batch** sorts the samples by task, puts the outputs back, and reads eight sets of weights (8.5 MB) where the
dense passes read one (1.06 MB), which stays in the cache: eight plain networks would read as much. Weights of the tasks
asked for last are kept, up to 64 MiB.

**One-shot inference** passes over all masks twice at first, to superpose them and to project the gradient on each, and
once afterwards. Superposing counts, by adders on whole words. Projecting adds the entries of the gradient that a mask
selects: {weights:,} additions a task, where reading its bits takes {words:,} words. Vector instructions make 8 or 16
additions at once, so that a task costs several times its read, and that is what remains where tasks are many. Four bits
can look up a sum of four entries within a register, which would be several times faster again; neither numpy nor numba
says that. Without numba the bits are unpacked to floats first.

**On a GPU** these networks are so small that launching kernels is all the time there is. When the file was measured, a
mask step launched about twice as many as the dense one. Now one sort chooses the masks of all layers, and one table
mixes those of all layers; `python -m benchmarks.gpu` measures what that costs.
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
    """The page, from the files of a folder."""
    speed, malloc, cuda, scaling, path = (
        json.loads((results / f"{name}.json").read_text())
        for name in ("speed", "speed_malloc", "speed_cuda", "scaling", "data_path")
    )
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
    """A ratio to two decimals, and what was asked of it."""
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
