"""Prepare pretrained networks for new tasks: add an output layer, and find the parameters that masks leave out.

Nothing is downloaded. The network comes from torchvision, timm or transformers, and its weights come from a local file
or folder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_supermask.model.copied_functions import copy_of
from avalanche_supermask.model.heads import output_layer

__all__ = ["ImageEncoderClassifier", "classifier", "left_out", "said_of"]

# Names of tables and scales in timm, torchvision and transformers that are not the weight of a layer.
_TABLES = re.compile(r".*(embed|token|position|bias|scale|gamma).*")


class ImageEncoderClassifier(nn.Module):
    """An image encoder of transformers with an output layer on its pooled features.

    Args:
        encoder: the encoder; it is called with ``pixel_values``, and its output has ``pooler_output`` or
            ``last_hidden_state``.
        classes: number of outputs.

    Shapes: the input is images ``(batch, channels, height, width)``; the output is logits ``(batch, classes)``.
    """

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        config: Any = encoder.config
        width = getattr(config, "hidden_size", None) or config.hidden_sizes[-1]
        self.fc = nn.Linear(int(width), classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(batch, classes)`` of images."""
        answer = self.encoder(pixel_values=x)
        features = getattr(answer, "pooler_output", None)
        if features is None:
            features = answer.last_hidden_state[:, 0]  # the class token
        out: Tensor = self.fc(features.flatten(1))
        return out


def classifier(net: nn.Module | str | Path, classes: int, *, seed: int = 0) -> nn.Module:
    """Return a copy of a pretrained network that has a new output layer and returns logits.

    Args:
        net: a torchvision or timm network, or any other network whose last layer with weights is `Linear` or `Conv2d`;
            a transformers model for texts or images; or a folder with such a model, as ``save_pretrained`` writes it.
        classes: number of outputs.
        seed: seed of the new layer (default 0).

    Raises:
        ValueError: the last layer with weights is neither `Linear` nor `Conv2d`.
        ImportError: a folder is given, but ``transformers`` is not installed.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1000))
        >>> classifier(net, 5)[2]
        Linear(in_features=16, out_features=5, bias=True)
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not isinstance(net, nn.Module):
            from avalanche_supermask.text.hub import pretrained

            return _on_encoder(pretrained(str(net)), classes)
        if hasattr(net, "config") and hasattr(net, "base_model"):
            return _on_encoder(copy_of(net.base_model), classes)  # type: ignore[type-var, arg-type]
        return _with_output_layer(copy_of(net), classes)


def _on_encoder(encoder: nn.Module, classes: int) -> nn.Module:
    if getattr(encoder, "main_input_name", "input_ids") == "pixel_values":
        return ImageEncoderClassifier(encoder, classes)
    from avalanche_supermask.text import EncoderClassifier

    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # type: ignore[assignment]  # its output is not used here
    return EncoderClassifier(encoder, classes)


def _with_output_layer(net: nn.Module, classes: int) -> nn.Module:
    place = output_layer(net)
    old = net.get_submodule(place)
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, classes, bias=old.bias is not None)
    elif isinstance(old, nn.Conv2d):
        new = nn.Conv2d(old.in_channels, classes, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)  # type: ignore[arg-type]
    else:
        raise ValueError(
            f"the last layer with weights, {place!r}, is a {type(old).__name__}; expected Linear or Conv2d: give the "
            f"network an output layer of {classes} classes yourself"
        )
    new.to(old.weight)
    if not place:
        return new
    holder, _, leaf = place.rpartition(".")
    setattr(net.get_submodule(holder), leaf, new)
    return net


def left_out(net: nn.Module) -> list[str]:
    """Return patterns of the names of parameters that sparse fine-tuning does not change by default.

    One kind is embeddings: the texts of a task use only a few of their rows, and they make up half of a small encoder.
    The other kind is parameters that are not the weight of a layer: class tokens, position tables, relative position
    biases and scales. Norms and biases are never masked by default (see ``mask`` of `MaskedModel`).

    Example:
        >>> len(left_out(nn.ModuleDict({"words": nn.Embedding(9, 4), "layer": nn.Linear(4, 4)})))
        1
    """
    layers = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.MultiheadAttention, nn.Bilinear)
    found = []
    for name, p in net.named_parameters():
        module = net.get_submodule(name.rpartition(".")[0])
        leaf = name.rpartition(".")[2]
        is_table = not isinstance(module, layers) and _TABLES.fullmatch(leaf)
        if p.dim() >= 2 and (isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or is_table):
            found.append(re.escape(name))
    return found


def said_of(model: Any, *, changes: int) -> str:
    """Return a line of text: how many weights a task changes, and which parameters no task changes by default.

    Args:
        model: a `MaskedModel`.
        changes: number of entries that a task changes.
    """
    masked = [weight.numel() for weight in model.subnetworks.frozen.values()]
    out = {n: p.numel() for n, p in model.shared.items() if p.dim() >= 2}
    own = [n for n, p in model.net.named_parameters() if n in model.fresh]
    parts = [f"SparseFineTuning: a task changes {changes:,} of {sum(masked):,} weights in {_count(len(masked))}"]
    if out:
        parts.append(f"left out: {_few(list(out))} ({sum(out.values()):,} weights)")
    if own:
        parts.append(f"its own: {_few(own)}")
    return "; ".join(parts)


def _count(n: int) -> str:
    return f"{n} tensor" if n == 1 else f"{n} tensors"


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
