"""Refuses what is no `MaskedModel`, above all a strategy, in the functions that write and read files."""

from __future__ import annotations

from typing import Any

from avalanche_supermask.model.masked_model import MaskedModel

__all__ = ["expect_model"]


def expect_model(model: Any, call: str) -> None:
    """Refuse anything but a `MaskedModel`.

    Args:
        model: the first argument of the caller.
        call: a correct call, for the error message.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(model, MaskedModel):
        raise TypeError(f"expected a MaskedModel, as in {call}; got {type(model).__name__}")
