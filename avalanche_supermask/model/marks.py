"""Checks, before a phase begins, of the bool tensors that mark trainable entries or the entries of a mask."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["check_marks", "refuse_owned"]


def check_marks(argument: str, marks: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse marks unless they are one bool tensor of the right shape for each masked weight.

    Args:
        argument: name of the argument, for the error message.
        marks: marks by name of the masked weight.
        shapes: shapes of the masked weights, by name.

    Raises:
        TypeError: a tensor is not bool.
        ValueError: names are missing or unknown, or a shape is wrong.
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
    """Refuse a phase that would train entries of finished tasks, because finished tasks never change.

    Args:
        trainable: bool tensors by name that mark the trainable entries.
        owned: bool tensors by name that mark the entries of finished tasks.

    Raises:
        ValueError: an entry of a finished task is marked as trainable.
    """
    for name, marked in trainable.items():
        taken = int((marked.to(owned[name].device) & owned[name]).sum())
        if taken:
            raise ValueError(
                f"{taken} entries of {name!r} that shall learn belong to finished tasks, which never change; "
                "leave them out (trainable & ~model.owned()[name]), or pass overwrite=True for a control"
            )
