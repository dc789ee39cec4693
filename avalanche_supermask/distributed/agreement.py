"""Checks that facts are equal in all processes before they learn together, with an error that names the difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from avalanche_supermask.distributed.group import in_group, told

__all__ = ["require_alike"]


def require_alike(facts: Mapping[str, Any], *, remedy: str) -> None:
    """Compare facts over the group.

    Args:
        facts: values in this process, by a description for the error. Each can be pickled and compared.
        remedy: advice for the error if a fact differs.

    Raises:
        RuntimeError: a fact differs. Every process raises it, and it lists the value of each.
    """
    if not in_group():
        return
    everyones = told(dict(facts))
    for name in facts:
        values = [found.get(name) for found in everyones]
        if any(value != values[0] for value in values):
            each = ", ".join(f"{value} in rank {r}" for r, value in enumerate(values))
            raise RuntimeError(f"the processes differ in {name}: {each}; {remedy}")
