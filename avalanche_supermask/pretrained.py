"""Pretrained networks, ready to be adapted: a new output layer, and which of their parameters masks leave out.

Nothing is downloaded. A network comes from torchvision, timm or transformers, with weights from a local file or folder.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_supermask.model.tensor_roles import output_layer

__all__ = ["ImageEncoderClassifier", "classifier", "left_out", "said_of"]

# Tables and scales that are no layer's weight: what timm, torchvision and transformers call theirs.
_TABLES = re.compile(r".*(embed|token|position|bias|scale|gamma).*")


class ImageEncoderClassifier(nn.Module):
    """An image encoder of transformers with an output layer on its pooled features.

    Args:
        encoder: called with ``pixel_values``; answers with ``pooler_output``, or else ``last_hidden_state``.
        classes: outputs.

    Shapes: images ``(batch, channels, height, width)`` in, logits ``(batch, classes)`` out.
    """

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        config: Any = encoder.config
        width = getattr(config, "hidden_size", None) or config.hidden_sizes[-1]
        self.fc = nn.Linear(int(width), classes)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        answer = self.encoder(pixel_values=x)
        features = getattr(answer, "pooler_output", None)
        if features is None:
            features = answer.last_hidden_state[:, 0]  # the class token
        out: Tensor = self.fc(features.flatten(1))
        return out


def classifier(net: nn.Module | str | Path, classes: int, *, seed: int = 0) -> nn.Module:
    """A copy of a pretrained network with a fresh output layer, which answers with logits.

    Args:
        net: a torchvision or timm network, or any other whose last layer with weights is linear or a convolution; a
            model of transformers, for texts or images; or a folder of one, as ``save_pretrained`` writes it.
        classes: outputs.
        seed: of the fresh layer.

    Raises:
        ValueError: the last layer is neither linear nor a convolution.
        ImportError: a folder, without ``transformers``.

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
            return _on_encoder(copy.deepcopy(net.base_model), classes)  # type: ignore[arg-type]
        return _with_output_layer(copy.deepcopy(net), classes)


def _on_encoder(encoder: nn.Module, classes: int) -> nn.Module:
    if getattr(encoder, "main_input_name", "input_ids") == "pixel_values":
        return ImageEncoderClassifier(encoder, classes)
    from avalanche_supermask.text import EncoderClassifier

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
    """Patterns of the parameters that sparse fine-tuning leaves as they are, by default.

    Embeddings: a task's texts meet few of their rows, and they are half of a small encoder. And what is no layer's
    weight: class tokens, position tables, relative position biases, scales. Norms and biases are never masked by
    default (see ``mask`` of `MaskedModel`).

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
    """One line: how many weights a task changes, and what was left out of it by default.

    Args:
        model: a `MaskedModel`.
        changes: entries that a task changes.
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
