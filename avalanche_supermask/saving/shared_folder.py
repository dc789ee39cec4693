"""A task as a folder in the usual layout for sharing models: weights, configuration and a model card."""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn

from avalanche_supermask.distributed import is_first
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.saving.atomic_write import written_whole
from avalanche_supermask.saving.expected_model import expect_model
from avalanche_supermask.saving.task_file import base_digest, save_task

__all__ = ["export_task"]

TASK, WEIGHTS, CONFIG, CARD = "task.safetensors", "model.safetensors", "config.json", "README.md"


def export_task(
    model: MaskedModel, key: int, folder: str | os.PathLike[str], *, name: str | None = None, weights: bool = True
) -> None:
    """Write one finished task to a folder, to publish it or to run it without this package.

    The folder contains ``task.safetensors`` (see `save_task`), ``model.safetensors`` (the plain network with the task's
    weights, from `MaskedModel.export`), ``config.json``, and a model card, ``README.md``. A model of the transformers
    library writes its weights and configuration itself, so that its ``from_pretrained`` can read the folder.

    Args:
        model: the model that learned the task.
        key: key of the task.
        folder: path of the folder. It is made if it does not exist; existing files of these names are replaced.
        name: title of the model card; None: the network's class and the task's key.
        weights: whether to write the plain network as well (default True). Without it, the folder is as small as the
            task.

    Raises:
        KeyError: the task is not learned.
        TypeError: ``model`` is no `MaskedModel`.
    """
    expect_model(model, "export_task(strategy.model, key, folder)")
    about = _about(model, key)
    if not is_first():
        return
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    save_task(model, key, place / TASK)
    net = model.export(key)
    config: dict[str, Any] = {"avalanche_supermask": about}
    if weights and hasattr(net, "save_pretrained"):
        net.cpu().save_pretrained(place)  # type: ignore[operator]
        config = {**json.loads((place / CONFIG).read_text()), **config}
    else:
        if weights:
            with written_whole(place / WEIGHTS) as temporary:
                save_model(net.cpu(), temporary)
        config = {**_inner_config(net), **config}
    _write(place / CONFIG, json.dumps(config, indent=2, sort_keys=True, default=str) + "\n")
    _write(place / CARD, _card(about, name or f"{about['network']}, task {key}", weights=weights))


def _about(model: MaskedModel, key: int) -> dict[str, Any]:
    """Facts about the task, for the configuration and the model card."""
    masks = model.subnetworks.task_mask(key)
    own = model.subnetworks.task_private(key)
    return {
        "network": type(model.net).__name__,
        "module": type(model.net).__module__,
        "task": key,
        "outside": model.outside,
        "entries": sum(int(mask.sum()) for mask in masks.values()),
        "masked_weights": sum(mask.numel() for mask in masks.values()),
        "tensors": len(masks),
        "own": {name: list(tensor.shape) for name, tensor in own.items()},
        "wrapping": {**model.wrapping, "init": "keep"},
        "base_sha256": base_digest(model),
        "base_model": _base_name(model.net),
        "versions": {"avalanche-supermask": version("avalanche-supermask"), "torch": torch.__version__},
    }


def _inner_config(net: nn.Module) -> dict[str, Any]:
    """Configuration of a transformers model inside a network; empty if there is none."""
    for module in net.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "to_dict"):
            found: dict[str, Any] = config.to_dict()  # type: ignore[union-attr]
            return found
    return {}


def _base_name(net: nn.Module) -> str | None:
    names = [getattr(getattr(module, "config", None), "_name_or_path", None) for module in net.modules()]
    found = next((name for name in names if isinstance(name, str) and name), None)
    # A path on this machine is of no use to others, and should stay private.
    return None if found is None or os.path.isabs(found) else found


def _write(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


def _card(about: dict[str, Any], title: str, *, weights: bool) -> str:
    share = about["entries"] / about["masked_weights"]
    inside = "changes" if about["outside"] == "base" else "keeps"
    base = f"base_model: {about['base_model']}\n" if about["base_model"] else ""
    own = ", ".join(f"`{name}` {tuple(shape)}" for name, shape in about["own"].items()) or "nothing"
    plain = (
        f"`{WEIGHTS}` holds the whole network with the task's weights; it needs no package but the one that defines "
        f"`{about['module']}.{about['network']}`.\n\n" if weights else ""
    )  # fmt: skip
    return f"""---
library_name: avalanche-supermask
tags: [continual-learning, subnetwork]
{base}---

# {title}

One task inside a `{about["network"]}`. It {inside} {about["entries"]:,} of {about["masked_weights"]:,} weights in
{about["tensors"]} tensors ({share:.2%}), and has for itself: {own}.

## Use

```python
from avalanche_supermask import MaskedModel, load_task

model = MaskedModel(net, **{about["wrapping"]!r})  # net: the pretrained network
key = load_task(model, "{TASK}")
logits = model.eval().forward_task(key, x)
```

The base is checked when the task is loaded: SHA-256 `{about["base_sha256"]}`.

{plain}## Not stated

Training data, licence, evaluation and intended use are for the author to fill in.
"""
