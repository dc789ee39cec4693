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
from avalanche_supermask.model.heads import output_layer, output_layers

__all__ = ["ImageEncoderClassifier", "classifier", "left_out", "said_of"]

# Names of tables and scales in timm, torchvision and transformers that are not the weight of a layer.
_TABLES = re.compile(r".*(embed|token|position|bias|scale|gamma).*")


class ImageEncoderClassifier(nn.Module):
    """An image encoder of transformers with an output layer on its pooled features.

    The features are the encoder's ``pooler_output``. An encoder without it gives the first token of
    ``last_hidden_state``, or the mean over all positions if this is a map ``(batch, channels, height, width)``.

    Args:
        encoder: the encoder; it is called with ``pixel_values``, and its output has ``pooler_output`` or
            ``last_hidden_state``.
        classes: number of outputs.

    Shapes: the input is images ``(batch, channels, height, width)``; the output is logits ``(batch, classes)``.
    """

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.fc = nn.Linear(self._width(), classes)

    def _width(self) -> int:
        """Return the number of features; a convolutional encoder is run once, as its configuration does not have it."""
        config: Any = self.encoder.config
        if getattr(config, "hidden_size", None):
            return int(config.hidden_size)
        size = getattr(config, "image_size", None) or 224
        height, width = (size, size) if isinstance(size, int) else size
        weight = next(self.encoder.parameters())
        images = torch.zeros(1, getattr(config, "num_channels", 3), height, width, dtype=weight.dtype)
        was_training = self.encoder.training
        with torch.no_grad():
            features = self.eval()._features(images.to(weight.device))
        self.train(was_training)
        return features.shape[1]

    def _features(self, x: Tensor) -> Tensor:
        answer = self.encoder(pixel_values=x)
        features: Tensor | None = getattr(answer, "pooler_output", None)
        if features is None:
            last: Tensor = answer.last_hidden_state
            features = last.mean(dim=(2, 3)) if last.dim() == 4 else last[:, 0]  # of tokens: the class token
        return features.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(batch, classes)`` of images."""
        out: Tensor = self.fc(self._features(x))
        return out


def classifier(net: nn.Module | str | Path, classes: int, *, seed: int = 0) -> nn.Module:
    """Return a copy of a pretrained network that has a new output layer and returns logits.

    Args:
        net: a torchvision or timm network, or any other network whose last layer with weights is `Linear` or `Conv2d`;
            a transformers model for texts or images, of which an encoder-decoder gives its encoder; or a folder with
            such a model, as ``save_pretrained`` writes it. A timm network may be without an output layer.
        classes: number of outputs.
        seed: seed of the new layer (default 0).

    Raises:
        ValueError: the last layer with weights is neither `Linear` nor `Conv2d`, or a norm of its outputs follows; or
            the transformers model takes neither texts nor images, or consists of encoders for both.
        ImportError: a folder is given, but ``transformers`` is not installed.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1000))
        >>> classifier(net, 5)[2]
        Linear(in_features=16, out_features=5, bias=True)
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(net, nn.Module):
            net = copy_of(net)
        else:
            from avalanche_supermask.text.hub import pretrained

            net = pretrained(str(net))
        if not (hasattr(net, "config") and hasattr(net, "base_model")):
            return _with_output_layer(net, classes)
        encoder: Any = net.base_model
        if not hasattr(encoder, "config"):  # a timm network that transformers wraps
            return _with_output_layer(encoder, classes)
        return _on_encoder(encoder, classes)


def _on_encoder(encoder: Any, classes: int) -> nn.Module:
    if getattr(encoder.config, "is_encoder_decoder", False):
        encoder = encoder.get_encoder()
    config, kind = encoder.config, type(encoder).__name__
    reads = getattr(encoder, "main_input_name", "input_ids")
    if reads not in ("input_ids", "pixel_values"):
        raise ValueError(
            f"{kind} takes {reads!r}; expected a model for texts ('input_ids') or images ('pixel_values'): write a "
            f"module that returns logits of {classes} classes, and pass it to the strategy"
        )
    parts = [n.removesuffix("_config") for n, c in vars(config).items() if n.endswith("_config") and _is_config(c)]
    if parts and not getattr(config, "hidden_size", None):
        raise ValueError(
            f"{kind} consists of several encoders ({', '.join(parts)}); expected one: pass the encoder that you need, "
            f"for example classifier(model.{parts[-1]}_model, {classes})"
        )
    if reads == "pixel_values":
        return ImageEncoderClassifier(encoder, classes)
    from avalanche_supermask.text import EncoderClassifier

    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # its output is not used here
    return EncoderClassifier(encoder, classes)


def _is_config(value: Any) -> bool:
    return hasattr(value, "model_type")


def _with_output_layer(net: nn.Module, classes: int) -> nn.Module:
    reset = getattr(net, "reset_classifier", None)
    if callable(reset):  # timm's way, which also fits networks with two output layers or none
        like = next(net.parameters())
        reset(classes)
        for place in output_layers(net):
            net.get_submodule(place).to(like)
        return net
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
    if norm := _norm_after(net, place, len(old.weight)):
        raise ValueError(
            f"{type(net).__name__} has no output layer: the norm {norm!r} follows its last layer with weights, "
            f"{place!r}; expected Linear or Conv2d as the last layer: add one to its features, "
            f"for example nn.Sequential(net, nn.Linear({len(old.weight)}, {classes}))"
        )
    new.to(old.weight)
    if not place:
        return new
    holder, _, leaf = place.rpartition(".")
    setattr(net.get_submodule(holder), leaf, new)
    return net


def _norm_after(net: nn.Module, place: str, width: int) -> str | None:
    """Return the name of the next module with parameters if it is a norm of so many features."""
    names = [name for name, _ in net.named_modules()]
    for name in names[names.index(place) + 1 :]:
        parameters = dict(net.get_submodule(name).named_parameters(recurse=False))
        if parameters:
            return name if tuple(parameters.get("weight", torch.empty(0)).shape) == (width,) else None
    return None


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
