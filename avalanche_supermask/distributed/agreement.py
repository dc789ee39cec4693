"""What must be alike in every process before they can learn together, compared early and told in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from avalanche_supermask.distributed.group import in_group, told

__all__ = ["require_alike"]


def require_alike(facts: Mapping[str, Any], *, remedy: str) -> None:
    """Compare facts over the group.

    Args:
        facts: what it is, and its value here; each can be pickled and compared.
        remedy: what to do if they differ.

    Raises:
        RuntimeError: in every process, if a fact differs; it says what each of them has.
    """
    if not in_group():
        return
    everyones = told(dict(facts))
    for name in facts:
        values = [found.get(name) for found in everyones]
        if any(value != values[0] for value in values):
            each = ", ".join(f"{value} in rank {r}" for r, value in enumerate(values))
            raise RuntimeError(f"the processes differ in {name}: {each}; {remedy}")
