"""Refuses networks that cannot be wrapped; each error message names what to pass instead."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["check_wrappable", "refuse_integers"]

# These classes are given by name, because torch.distributed is not part of every PyTorch.
_PARALLEL = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}


def check_wrappable(net: nn.Module) -> None:
    """Refuse a network that a `MaskedModel` could not call or copy.

    Raises:
        TypeError: the network is not a module, or a part of it is TorchScript or a wrapper for parallel training.
        RuntimeError: it is called under `torch.inference_mode`.
        ValueError: a weight has no shape or no values yet, was made under `torch.inference_mode`, is computed outside
            of the forward pass, or is a tensor with a history; or a layer is quantised.
    """
    if not isinstance(net, nn.Module):
        loaded = "; load it into the network first" if isinstance(net, Mapping) else ""
        raise TypeError(f"expected a torch.nn.Module to wrap; got {type(net).__name__}{loaded}")
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "a model that is made under torch.inference_mode() could never be trained; make it outside of this mode"
        )
    for name, module in net.named_modules():
        place = f"module {name!r}" if name else "the network"
        kind = type(module).__name__
        if isinstance(module, ScriptModule):
            raise TypeError(f"{place} is TorchScript ({kind}), whose weights cannot be exchanged; pass it unscripted")
        parallel = next((c.__name__ for c in type(module).__mro__ if _is_parallel(c)), None)
        if parallel in ("FullyShardedDataParallel", "FSDPModule"):
            raise TypeError(f"{place} is sharded ({parallel}), and masks need whole weights; pass it as it was before")
        if parallel is not None:
            remedy = (
                f"put the module inside, net.get_submodule({name!r}).module, in its place"
                if name
                else "pass the module inside, as in SupSup(net.module)"
            )
            raise TypeError(f"{place} is wrapped in {parallel}, which copies weights without their masks; {remedy}")
        if _is_quantised(module):
            raise ValueError(
                f"{place} ({kind}) is quantised, and no gradient passes it; load the network without quantisation"
            )
        for hook in module._forward_pre_hooks.values():
            _check_hook(place, name, module, hook)
        for leaf, p in module.named_parameters(recurse=False):
            if isinstance(p, UninitializedParameter):
                raise ValueError(
                    f"{place} ({kind}) has a weight without a shape, {leaf!r}; call the network once on a batch before "
                    "you pass it"
                )
            if p.is_meta:
                raise ValueError(
                    f"{place} ({kind}) has a weight without values, {leaf!r}, on the meta device; call "
                    "net.to_empty(device='cpu') and load or draw its values first"
                )
            if p.is_inference():
                raise ValueError(
                    f"{place} ({kind}) was made under torch.inference_mode(), so that {leaf!r} can never be trained; "
                    "make the network outside of it"
                )
        for attribute, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                raise ValueError(
                    f"{place} ({kind}) holds a tensor with a history, {attribute!r}, which cannot be copied; make it a "
                    "parameter or a buffer, or detach() it"
                )


def refuse_integers(net: nn.Module) -> None:
    """Refuse quantised or integer weights, because their entries cannot be fine-tuned.

    Raises:
        ValueError: the network has such weights.
    """
    for place, module in net.named_modules():
        kind = type(module)
        whole = [
            f"{place}.{n}".lstrip(".")
            for n, p in module.named_parameters(recurse=False)
            if not (p.is_floating_point() or p.is_complex())
        ]
        if whole or _is_quantised(module) or kind.__module__.startswith("bitsandbytes"):
            raise ValueError(
                f"{(whole[0] if whole else place)!r} ({kind.__name__}) has quantised or integer weights, and only "
                "floating-point weights can be fine-tuned; load the network without quantisation"
            )


def _is_quantised(module: nn.Module) -> bool:
    """Whether it is a quantised layer of PyTorch, whose weights are packed and are no parameters."""
    return "quantized" in type(module).__module__.split(".")


def _is_parallel(cls: type) -> bool:
    return cls.__name__ in _PARALLEL and cls.__module__.startswith("torch.")


def _check_hook(place: str, name: str, module: nn.Module, hook: object) -> None:
    if isinstance(hook, WeightNorm | SpectralNorm):
        old = "weight_norm" if isinstance(hook, WeightNorm) else "spectral_norm"
        raise ValueError(
            f"{place} has the old torch.nn.utils.{old}, which computes {hook.name!r} outside of the forward pass; use "
            f"torch.nn.utils.parametrizations.{old}"
        )
    if isinstance(hook, BasePruningMethod):
        leaf = getattr(hook, "_tensor_name", "weight")
        raise ValueError(
            f"{place} is pruned by torch.nn.utils.prune, which computes {leaf!r} outside of the forward pass; make it "
            f"permanent first: torch.nn.utils.prune.remove(module, {leaf!r}); the zeros stay with init='keep'"
        )
