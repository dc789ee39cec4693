"""The role of each tensor of a network: shared through masks, shared as a whole, or private to each task.

The roles are determined once, from names, shapes and module types, when a network is wrapped.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from avalanche.models import DynamicModule
from torch import Tensor, nn

from avalanche_supermask.functional import signed_constant
from avalanche_supermask.model.heads import grow_heads, head_tensors, output_layer, output_weight
from avalanche_supermask.model.parameter_kinds import is_gain, is_norm

# The names of `heads` are here too, because scripts import them from this module.
__all__ = [
    "Frozen",
    "Init",
    "Layout",
    "Maskable",
    "Outside",
    "PerTask",
    "Scores",
    "Statistics",
    "classify",
    "grow_heads",
    "head_tensors",
    "moving_buffers",
    "output_layer",
    "output_weight",
    "own_values",
    "redraw",
    "running_norms",
    "say_what_stays",
]

Init = Literal["scaled_constant", "signed_constant", "keep"]
PerTask = Literal["none", "norm", "all"]
Maskable = Literal["weights", "all"]
Outside = Literal["zero", "base"]
Scores = Literal["random", "magnitude"]
Statistics = Literal["task", "frozen"]
Frozen = Literal["keep", "mask"]


@dataclass(frozen=True)
class Layout:
    """The tensors of a network outside its heads, by name.

    Attributes:
        masked: parameters that tasks share through masks.
        shared: frozen parameters that are the same for every task.
        private: parameters of which each task has its own copy.
        buffers: all buffers: running statistics, which training may change, and constants.
        frozen: names of the parameters that are frozen in the caller's network and never change, including those of
            heads.
    """

    masked: Mapping[str, nn.Parameter]
    shared: Mapping[str, nn.Parameter]
    private: Mapping[str, nn.Parameter]
    buffers: Mapping[str, Tensor]
    frozen: frozenset[str] = frozenset()


def classify(
    net: nn.Module,
    *,
    per_task: PerTask,
    exclude: Sequence[str],
    own: Sequence[str],
    mask: Maskable,
    frozen: Frozen = "keep",
) -> Layout:
    """Determine the role of each tensor of a network; `MaskedModel` describes the arguments.

    Raises:
        TypeError: ``own`` or ``exclude`` is a string instead of a list.
        ValueError: an option is unknown, ``own`` or ``exclude`` has an invalid expression, or there is nothing to mask.
    """
    for option, value, known in (
        ("per_task", per_task, ("none", "norm", "all")),
        ("mask", mask, ("weights", "all")),
        ("frozen", frozen, ("keep", "mask")),
    ):
        if value not in known:
            *others, last = map(repr, known)
            raise ValueError(f"{option} must be {', '.join(others)} or {last}; got {value!r}")
    for option, patterns in (("own", own), ("exclude", exclude)):
        _check_patterns(net, option, patterns)
    heads = tuple(f"{name}." for name, m in net.named_modules() if name and isinstance(m, DynamicModule))
    masked: dict[str, nn.Parameter] = {}
    shared: dict[str, nn.Parameter] = {}
    private: dict[str, nn.Parameter] = {}
    stay: set[str] = set()
    left_out: dict[str, list[str]] = {}  # names of the weights that are not masked, by the reason
    norms = 0
    for name, p in net.named_parameters():
        stays = frozen == "keep" and not p.requires_grad and not _matches(name, own)
        if stays:
            stay.add(name)
        if name.startswith(heads):
            if p.dim() >= 2:
                left_out.setdefault("of a head", []).append(name)
            continue
        norm = is_norm(net, name)
        norms += norm
        maskable = p.dim() >= 1 and not is_gain(net, name) if mask == "all" else p.dim() >= 2 and not norm
        reason = _left_out(name, p, stays=stays, exclude=exclude, own=own) if maskable else None
        if reason is not None:
            left_out.setdefault(reason, []).append(name)
        if stays:
            shared[name] = p
        elif maskable and reason is None:
            masked[name] = p
        elif _matches(name, own) or per_task == "all" or (per_task == "norm" and norm):
            private[name] = p
        else:
            shared[name] = p
    if not masked:
        _complain_of_nothing(net, left_out)
    if per_task == "norm" and not norms:
        warnings.warn(
            f"per_task='norm', but no module of {type(net).__name__} is a norm by its class or its name and has "
            "parameters: nothing is each task's own; name the parameters in own=[...] if there are some",
            stacklevel=4,
        )
    buffers = {name: b for name, b in net.named_buffers() if not name.startswith(heads)}
    return Layout(masked, shared, private, buffers, frozenset(stay))


def _check_patterns(net: nn.Module, option: str, patterns: Sequence[str]) -> None:
    """Refuse a string in place of a list, and warn of an expression that matches no parameter and so has no effect."""
    if isinstance(patterns, str):
        raise TypeError(f"{option} is a list of regular expressions; got a string, pass {option}=[{patterns!r}]")
    names = [name for name, _ in net.named_parameters()]
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"{option}: {pattern!r} is no regular expression ({error}); to name a parameter literally, pass "
                "re.escape(name)"
            ) from None
        if names and not any(_matches(name, [pattern]) for name in names):
            close = [name for name in names if re.search(pattern, name)] or names
            warnings.warn(
                f"{option}: {pattern!r} matches no parameter of {type(net).__name__} and has no effect; an expression "
                f"must match a whole name, for example {re.escape(close[0])!r}",
                stacklevel=5,
            )


def _left_out(name: str, p: nn.Parameter, *, stays: bool, exclude: Sequence[str], own: Sequence[str]) -> str | None:
    """Reason why a weight is not masked, after "is" or "are"; None if it is masked."""
    if _matches(name, exclude):
        return f"excluded by exclude={[*exclude]}"
    if _matches(name, own):
        return "each task's own (an output layer, or named in own)"
    if not p.is_floating_point():
        return "complex" if p.is_complex() else "of integers"
    return "frozen" if stays else None


def _complain_of_nothing(net: nn.Module, left_out: Mapping[str, Sequence[str]]) -> None:
    """Raise an error that names the weights that could have been masked, and what kept them out."""
    kind = type(net).__name__
    if "frozen" in left_out:
        raise ValueError(
            f"every weight of {kind} that could be masked is frozen (requires_grad=False), and frozen "
            "parameters stay as they are; pass frozen='mask' to mask them too, or unfreeze what shall learn"
        )
    if not left_out:
        raise ValueError(
            f"{kind} has no weight to mask: expected at least one parameter of two or more dimensions outside norms; "
            "pass a network with a Linear, convolution or embedding layer"
        )
    reasons = " and ".join(
        f"{', '.join(map(repr, names[:3]))}{' and others' if len(names) > 3 else ''} "
        f"{'is' if len(names) == 1 else 'are'} {reason}"
        for reason, names in left_out.items()
    )
    remedy = "exclude fewer of them" if any(r.startswith("excluded") for r in left_out) else "add a hidden layer"
    raise ValueError(f"{kind} has no weight to mask, as {reasons}; {remedy}")


def say_what_stays(net: nn.Module, layout: Layout) -> None:
    """Warn of parameters that stay as they are: those that are frozen in the caller's network, and complex ones."""
    if layout.frozen:
        some = ", ".join(sorted(layout.frozen)[:3]) + (", and others" if len(layout.frozen) > 3 else "")
        warnings.warn(
            f"{len(layout.frozen)} parameters of {type(net).__name__} are frozen (requires_grad=False) and stay as "
            f"they are, neither masked nor redrawn ({some}); pass frozen='mask' to mask them too",
            stacklevel=4,
        )
    unmasked = [name for name, p in layout.shared.items() if p.is_complex() and p.requires_grad]
    if unmasked:
        warnings.warn(
            f"complex parameters of {type(net).__name__} cannot be masked and stay as they are "
            f"({', '.join(unmasked[:3])}{', and others' if len(unmasked) > 3 else ''}); name them in own=[...], then "
            "each task trains its own",
            stacklevel=4,
        )


def moving_buffers(net: nn.Module) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the buffers that a call may change: in training mode, and in evaluation mode.

    PyTorch's own norms do not change their buffers in evaluation mode; other modules may.

    Example:
        >>> [sorted(names) for names in moving_buffers(nn.BatchNorm1d(2))]
        [['num_batches_tracked', 'running_mean', 'running_var'], []]
    """
    still = {
        f"{place}.{leaf}".lstrip(".")
        for place, module in net.named_modules(remove_duplicate=False)
        if isinstance(module, nn.modules.batchnorm._NormBase) and type(module).__module__.startswith("torch.nn.")
        for leaf, _ in module.named_buffers(recurse=False)
    }
    every = frozenset(name for name, _ in net.named_buffers(remove_duplicate=False))
    return every, every - still


@torch.no_grad()
def redraw(layout: Layout, seed: int, *, biases: bool = True, padding: Mapping[str, int] | None = None) -> None:
    """Set the masked weights to signed constants and, optionally, the biases to zero (SupSup, A1), in place.

    Args:
        layout: roles of the network's tensors; parameters that are frozen in the caller's network do not change.
        seed: seed of the signs.
        biases: whether the biases are set to zero.
        padding: index of the padding row, which does not change, by name of the weight.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, p in layout.masked.items():
        drawn = signed_constant(p.shape, generator=generator)
        if padding and name in padding:
            drawn[padding[name]] = p[padding[name]].to(drawn)
        p.copy_(drawn)
    for name, p in (*layout.shared.items(), *layout.private.items()) if biases else ():
        if "bias" in name.rpartition(".")[2] and name not in layout.frozen:
            p.zero_()


def own_values(net: nn.Module | Mapping[str, Tensor], masked: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masked weights of another network of the same structure.

    Args:
        net: the other network, or its state.
        masked: the masked weights, by name; they give the names, shapes, types and devices.

    Raises:
        ValueError: a weight is missing or has another shape.
    """
    state = net.state_dict() if isinstance(net, nn.Module) else net
    if not isinstance(state, Mapping):
        raise TypeError(f"values must be a network or its state_dict(); got {type(net).__name__}")
    for name, weight in masked.items():
        if name not in state or state[name].shape != weight.shape:
            got = tuple(state[name].shape) if name in state else "nothing"
            raise ValueError(
                f"values: expected {name!r} of shape {tuple(weight.shape)}, got {got}; pass a network of "
                "the same structure"
            )
    return {name: state[name].detach().clone().to(weight) for name, weight in masked.items()}


def running_norms(net: nn.Module) -> list[nn.Module]:
    """Layers that normalise with running statistics in evaluation mode, and update them in training mode."""
    return [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.running_mean is not None]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)
