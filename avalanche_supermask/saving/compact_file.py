"""The compact file: all finished tasks of a model, in safetensors with a JSON manifest, without pickles or code.

The file contains the frozen weights (with a base: the base and the differing values), one entropy-coded mask per task
(see `rice`), coefficients of mixtures, private tensors of the tasks, and the initial values of new tasks. A SHA-256
checksum of all this is checked before anything is built. Temporary tensors of the task being learned (scores, the
trainable copy of the weights) are not stored. A strategy is not stored either: `save_checkpoint` serves to resume runs.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_supermask.bits.rice import encode, is_grouped
from avalanche_supermask.distributed import is_first
from avalanche_supermask.model.copied_functions import copy_of
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.named_tensors import decoded
from avalanche_supermask.saving.compact_reading import BASE, FORMAT, FROZEN, read_compact
from avalanche_supermask.saving.expected_model import expect_model
from avalanche_supermask.saving.sealed_file import write_sealed

__all__ = ["load", "save"]

SCRATCH = (
    "host.", "subnetworks.scores.", "subnetworks.values.", "subnetworks.mixtures.coefficients.", "subnetworks.masks."
)  # fmt: skip
EXTRA = "_extra_state"
STATISTICS = "subnetworks.statistics."


def save(model: MaskedModel, path: str | os.PathLike[str]) -> None:
    """Write a model's finished tasks to a compact file.

    If several processes learn together, only rank 0 writes the file, because all processes have the same tasks.

    Args:
        model: the model, between tasks.
        path: path of the file to write; an existing file is replaced in one step when the new one is complete.

    Raises:
        TypeError: ``model`` is no `MaskedModel`, but for example a strategy.
        ValueError: a task is being learned.
    """
    expect_model(model, "save(strategy.model, path)")
    if model.active is not None:
        raise ValueError(
            f"task {model.active} is being learned, and only finished tasks are saved: save between experiences "
            "(with SupSupNNs, call strategy.finish() first), or use save_checkpoint()"
        )
    if not is_first():
        return
    state = model.state_dict()
    tensors = {
        name: value.detach().cpu().contiguous()
        for name, value in state.items()
        if isinstance(value, Tensor) and not name.startswith(SCRATCH)
    }
    masks = model.subnetworks.masks
    rows = {slot: masks.layer_codes(slot) for slot in masks.slots()}
    codes = {slot: b"".join(row) for slot, row in rows.items()}
    joined = b"".join(codes.values())
    tensors["masks"] = torch.frombuffer(bytearray(joined), dtype=torch.uint8) if joined else torch.empty(0).byte()
    changed = _without_base(model, tensors)
    grouped = any(is_grouped(code) for code in (*(c for row in rows.values() for c in row), *changed.values()))
    more = bool(changed) or any(name.startswith(STATISTICS) for name in tensors)
    manifest = {
        "format": FORMAT if grouped else 2 if more else 1,
        "changed": [[name, len(code)] for name, code in changed.items()],
        "wrapping": model.wrapping,
        "frozen": sorted(model.frozen_names),
        "seed": model.seed,
        "task_inference": model.task_inference if isinstance(model.task_inference, str) else "given",
        "inference_object": None if isinstance(model.task_inference, str) else repr(model.task_inference),
        "logits": None if callable(model.logits) else model.logits,
        "class_dimension": model.class_dimension,
        "execution": model.execution,
        "extra": {name: value for name, value in state.items() if name.endswith(EXTRA)},
        "masks": [[slot, len(code)] for slot, code in codes.items()],
    }
    write_sealed(path, manifest, tensors, kind="supermask")


def load(path: str | os.PathLike[str], net: nn.Module, *, device: str | torch.device = "cpu") -> MaskedModel:
    """Read a compact file.

    Args:
        path: path of a file of `save`.
        net: the network that was wrapped, or another one of the same structure; its values are not used.
        device: device of the model (default: CPU).

    Returns:
        A model with all tasks of the file, in evaluation mode; the tasks have the same outputs as before.

    Raises:
        ValueError: the file is damaged, was not written by `save`, has a later format, or belongs to another network.
        FileNotFoundError: there is no such file.
        TypeError: ``net`` is no network, but for example a class.
    """
    if not isinstance(net, nn.Module) or isinstance(net, MaskedModel):
        got = f"the class {net.__name__}" if isinstance(net, type) else type(net).__name__
        raise TypeError(f"net: expected the network that was wrapped, as in load(path, MyNet()); got {got}")
    manifest, tensors, rows = read_compact(path)
    wrapping = manifest["wrapping"]
    net = copy_of(net)
    for name, p in net.named_parameters():
        p.requires_grad_(name not in manifest.get("frozen", ()))  # the same parameters as in the saved network
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these warnings were given when the saved network was wrapped
        model = MaskedModel(net, **{**wrapping, "init": "keep"}, seed=manifest["seed"])
    model.init, model.wrapping = wrapping["init"], wrapping
    _expect_same_network(path, model, tensors)
    for slot, code in rows.items():
        model.subnetworks.masks.commit_code(slot, code)
    stored = {**tensors, **manifest["extra"]}
    model.grow_heads(stored)
    kept = {n: v for n, v in model.state_dict().items() if n.startswith(SCRATCH)}
    model.load_state_dict({**kept, **stored})
    model.task_inference = manifest["task_inference"]
    if manifest.get("inference_object"):
        warnings.warn(
            f"the saved model found tasks with {manifest['inference_object']}, and {path} has only the names of "
            "inference methods, not their settings; until you set model.task_inference again, labels select the task",
            stacklevel=2,
        )
    model.logits, model.class_dimension = manifest.get("logits"), manifest.get("class_dimension", 1)
    model.execution = manifest.get("execution", "dense")  # files of 0.1.0 have no entry for it
    model.to(device).eval()
    return model


def _without_base(model: MaskedModel, tensors: dict[str, Tensor]) -> dict[str, bytes]:
    """Reduce the frozen weights to the values that differ from the base, in place, if there is a base.

    Returns:
        Codes, by name, of the bool arrays that mark these values.
    """
    codes = {}
    for name in [n[len(BASE) :] for n in tensors if n.startswith(BASE)]:
        base, frozen = tensors[BASE + name], tensors[FROZEN + name]
        differs = (frozen != base) | (frozen.signbit() != base.signbit())
        codes[name], tensors[FROZEN + name] = encode(differs.numpy()), frozen[differs]
    joined = b"".join(codes.values())
    if joined:
        tensors["changed"] = torch.frombuffer(bytearray(joined), dtype=torch.uint8)
    return codes


def _expect_same_network(path: Any, model: MaskedModel, tensors: Mapping[str, Tensor]) -> None:
    prefix = "subnetworks.frozen."
    stored = {decoded(n[len(prefix) :]): tuple(t.shape) for n, t in tensors.items() if n.startswith(prefix)}
    mine = model.masked_shapes
    if stored != mine:
        name = next(n for n in [*stored, *mine] if stored.get(n) != mine.get(n))
        theirs, ours = (f"a weight of shape {of[name]}" if name in of else "no weight" for of in (stored, mine))
        raise ValueError(
            f"{path} is of another network: at {name!r} it has {theirs}, and this {type(model.net).__name__} has {ours}"
            "; pass the network that was saved"
        )
