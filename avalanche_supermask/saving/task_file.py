"""A task as a file: the mask, values, norms and output layer of one finished task, in safetensors.

The file also contains the statistics that inference gathered for the task.

The file contains only the tensors of the task, tens or hundreds of kilobytes, and a digest of all other tensors that
the task uses: the base around its mask, frozen parameters, initial buffers. So it can be loaded into any model with the
same base, which may have learned any other tasks, and into no other model. If other tasks own some of the entries with
other values, the values are stored with the task, beside the shared ones.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Mapping
from typing import Any

import torch
from avalanche.models import DynamicModule
from torch import Tensor

from avalanche_supermask.bits.rice import decode, encode, is_grouped
from avalanche_supermask.distributed import is_first
from avalanche_supermask.model.heads import grow_heads
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.saving.expected_model import expect_model
from avalanche_supermask.saving.sealed_file import digest, read_sealed, write_sealed

__all__ = ["base_digest", "load_task", "save_task"]

FORMAT = 2  # with grouped codes (see `rice`); files without them have format 1
KIND = "supermask_task"


def save_task(model: MaskedModel, key: int, path: str | os.PathLike[str]) -> None:
    """Write one finished task to a file.

    If several processes learn together, only rank 0 writes the file, because all processes have the same tasks.

    Args:
        model: the model that learned the task.
        key: key of the task.
        path: path of the file to write; an existing file is replaced in one step when the new one is complete.

    Raises:
        KeyError: the task is not learned.
        TypeError: ``model`` is no `MaskedModel`.
    """
    expect_model(model, "save_task(strategy.model, key, path)")
    masks, values = model.subnetworks.task_mask(key), model.subnetworks.task_values(key)
    task = model.subnetworks.tasks[key]
    codes = {name: encode(mask.cpu().numpy()) for name, mask in masks.items() if bool(mask.any())}
    kinds = dict.fromkeys(str(values[name].dtype) for name in codes)
    tensors = {f"own.{name}": t.detach().cpu().contiguous() for name, t in model.subnetworks.task_private(key).items()}
    gathered = model.subnetworks.task_statistics(key)
    tensors.update({f"gathered.{name}": t.detach().cpu().contiguous() for name, t in gathered.items()})
    tensors["masks"] = torch.frombuffer(bytearray(b"".join(codes.values()) or b"\0"), dtype=torch.uint8)
    for kind in kinds:
        tensors[f"values.{kind}"] = torch.cat([values[n].detach().cpu() for n in codes if str(values[n].dtype) == kind])
    manifest = {
        "format": FORMAT if any(is_grouped(code) for code in codes.values()) else 1,
        "key": key,
        "label": task.label,
        "entropy": task.entropy,
        "outside": model.outside,
        "network": type(model.net).__name__,
        "base": base_digest(model),
        "wrapping": model.wrapping,
        "layers": [[n, list(masks[n].shape), len(code), str(values[n].dtype)] for n, code in codes.items()],
    }
    if is_first():
        write_sealed(path, manifest, tensors, kind=KIND)


def load_task(model: MaskedModel, path: str | os.PathLike[str], *, key: int | None = None) -> int:
    """Add the task of a file to a model; the task has the same outputs as before, and no other task changes.

    Args:
        model: the model, between tasks; it must have the same base as the model that wrote the file.
        path: path of a file of `save_task`.
        key: key of the task in this model, which is also its label; None: the key and the label in the file.

    Returns:
        The task's key in this model.

    Raises:
        ValueError: the key is in use, a task is being learned, or the file is damaged or belongs to another
            architecture, another base, or a model that is wrapped in another way or has another number type.
        FileNotFoundError: there is no such file.
        TypeError: ``model`` is no `MaskedModel`, or the key is no integer.
    """
    expect_model(model, "load_task(strategy.model, path)")
    key = _integer(key)
    manifest, tensors = read_sealed(path, kind=KIND, written_by="save_task()", newest=FORMAT)
    label = manifest["label"] if key is None else key
    key = manifest["key"] if key is None else key
    if model.active is not None:
        raise ValueError(f"task {model.active} is being learned; load a task between experiences")
    has_heads = any(isinstance(m, DynamicModule) for m in model.net.modules())
    if has_heads and label != manifest["label"]:
        raise ValueError(
            f"the network names its heads by label, and {path} has label {manifest['label']}, so that it cannot get "
            f"key={key}; leave key out"
        )
    if key in model.task_keys:
        remedy = (
            f"forget({key}) first, as the network names its heads by label"
            if has_heads
            else f"pass another key, as in key={max(model.task_keys) + 1}"
        )
        raise ValueError(f"task {key} is learned already; {remedy}")
    masked = {name: tuple(shape) for name, shape, *_ in manifest["layers"]}
    _expect_shapes(path, model, manifest, masked, model.masked_shapes)
    if manifest["outside"] != model.outside:
        raise ValueError(
            f"{path} was learned with outside={manifest['outside']!r}; this model has {model.outside!r}; wrap the "
            f"network with outside={manifest['outside']!r}"
        )
    _expect_types(path, model, {name: kind for name, _, _, kind in manifest["layers"]})
    if base_digest(model) != manifest["base"]:
        _expect_wrapping(path, model, manifest)
        raise ValueError(
            f"{path} changes another base: the weights, frozen parameters or running statistics around its mask differ "
            "from this model's; load the pretrained weights that it was learned on"
        )
    own = {name[len("own.") :]: tensor for name, tensor in tensors.items() if name.startswith("own.")}
    if has_heads:
        heads = [t for name, t in own.items() if name.endswith("weight") and t.dim() == 2]
        grow_heads(model.net, {label or 0: len(heads[-1]) if heads else 1})
        own = _without_others(model, own)
    _expect_own(path, model, manifest, own)
    _expect_types(path, model, {name: str(tensor.dtype) for name, tensor in own.items()})
    masks, values = _unpacked(model, manifest, tensors)
    model.adopt(key, label, masks, values, own, entropy=manifest["entropy"])
    start = "gathered."
    gathered = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
    if gathered:
        device = next(iter(model.subnetworks.frozen.values())).device
        model.store_statistics(key, {name: t.to(device) for name, t in gathered.items()})
    return key


def base_digest(model: MaskedModel) -> str:
    """SHA-256 of the tensors that the tasks of a model use but do not own: base, frozen parameters, initial buffers."""
    buffers = {name: model.fresh[name] for name in model.buffer_names}
    return digest({**model.subnetworks.base, **model.shared, **buffers})


def _integer(key: int | None) -> int | None:
    try:
        return None if key is None else operator.index(key)
    except TypeError:
        raise TypeError(
            f"key: expected an integer, or None for the key in the file; got {type(key).__name__} {key!r}"
        ) from None


def _expect_types(path: Any, model: MaskedModel, kinds: Mapping[str, str]) -> None:
    """Refuse a task whose tensors have other number types than the network's, because its outputs would differ."""
    mine = {n: t.dtype for n, t in (*model.net.named_parameters(), *model.net.named_buffers())}
    for name, kind in kinds.items():
        if str(mine[name]) != kind:
            raise ValueError(
                f"{path} was learned in {kind}, and {name!r} here has {mine[name]}; convert the network before "
                "it is wrapped"
            )


def _expect_wrapping(path: Any, model: MaskedModel, manifest: Mapping[str, Any]) -> None:
    """Refuse a file whose base differs because its model was wrapped with other arguments."""
    theirs = manifest.get("wrapping", {})  # files of earlier versions do not have it
    for name in ("per_task", "statistics", "own", "exclude", "mask", "frozen"):
        if name in theirs and theirs[name] != model.wrapping.get(name):
            raise ValueError(
                f"{path} was learned with {name}={theirs[name]!r}; this model has {model.wrapping.get(name)!r}; wrap "
                f"the network with {name}={theirs[name]!r}"
            )


def _without_others(model: MaskedModel, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The task's own tensors, without those of Avalanche's dynamic modules that this network does not have."""
    dynamic = tuple(f"{name}." for name, m in model.net.named_modules() if name and isinstance(m, DynamicModule))
    have = {n for n, _ in (*model.net.named_parameters(), *model.net.named_buffers())}
    return {name: tensor for name, tensor in own.items() if name in have or not name.startswith(dynamic)}


def _expect_own(path: Any, model: MaskedModel, manifest: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    """Refuse a task whose own tensors do not fit the network; the number of classes of an output layer may differ."""
    mine = {n: tuple(t.shape) for n, t in (*model.net.named_parameters(), *model.net.named_buffers())}
    brought = {name: tuple(tensor.shape) for name, tensor in own.items()}
    same = {n: brought[n] if n in brought and shape[1:] == brought[n][1:] else shape for n, shape in mine.items()}
    _expect_shapes(path, model, manifest, brought, same)


def _expect_shapes(
    path: Any, model: MaskedModel, manifest: Mapping[str, Any], file: Mapping[str, Any], mine: Mapping[str, Any]
) -> None:
    for name, shape in file.items():
        if mine.get(name) != shape:
            has = f"has shape {mine[name]} there" if name in mine else "has no such tensor"
            raise ValueError(
                f"{path} is of another architecture, or of one wrapped in another way: its {name!r} has shape {shape}, "
                f"and this {type(model.net).__name__} {has}; pass a model that wraps a {manifest['network']} in the "
                "same way"
            )


def _unpacked(
    model: MaskedModel, manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Masks and values of every masked weight, by name."""
    code = tensors["masks"].numpy().tobytes()
    rest = {name: tensor for name, tensor in tensors.items() if name.startswith("values.")}
    masks = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in model.masked_shapes.items()}
    values = {name: weight.new_zeros(0) for name, weight in model.subnetworks.frozen.items()}
    for name, shape, length, kind in manifest["layers"]:
        flat, _ = decode(code[:length], math.prod(shape))
        masks[name], code = torch.from_numpy(flat).reshape(shape), code[length:]
        count = int(masks[name].sum())
        values[name], rest[f"values.{kind}"] = rest[f"values.{kind}"].split(
            [count, len(rest[f"values.{kind}"]) - count]
        )
    return masks, values
