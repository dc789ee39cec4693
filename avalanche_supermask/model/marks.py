"""Marks of entries that shall learn, or that a mask holds: checked before a phase begins."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["check_marks", "refuse_owned"]


def check_marks(argument: str, marks: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse marks that are not one bool tensor in the right shape for each masked weight.

    Args:
        argument: name of the argument, for the error.
        marks: by name of the masked weight.
        shapes: of the masked weights.

    Raises:
        TypeError: an entry is not bool.
        ValueError: missing or unknown names, or a wrong shape.
    """
    if set(marks) != set(shapes):
        wrong = sorted(set(marks) ^ set(shapes))
        raise ValueError(f"{argument} needs one entry per masked weight, {[*shapes]}; wrong or missing: {wrong}")
    for name, mark in marks.items():
        if mark.dtype != torch.bool:
            raise TypeError(f"{argument}[{name!r}] must be a bool tensor; got {mark.dtype}: compare, as in S > 0")
        if tuple(mark.shape) != shapes[name]:
            raise ValueError(f"{argument}[{name!r}] must have the shape {shapes[name]}; got {tuple(mark.shape)}")


def refuse_owned(trainable: Mapping[str, Tensor], owned: Mapping[str, Tensor]) -> None:
    """Keep the promise: no phase may train what a finished task uses.

    Args:
        trainable: bool by name.
        owned: entries that finished tasks use, bool by name.

    Raises:
        ValueError: some of them are marked to learn.
    """
    for name, marked in trainable.items():
        taken = int((marked.to(owned[name].device) & owned[name]).sum())
        if taken:
            raise ValueError(
                f"{taken} entries of {name!r} that shall learn belong to finished tasks, which never change; "
                "leave them out (trainable & ~model.owned()[name]), or pass overwrite=True for a control"
            )
