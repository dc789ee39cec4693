"""Check that facts are equal in all processes before they learn together; an error names the fact that differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from avalanche_supermask.distributed.group import in_group, told

__all__ = ["require_alike"]


def require_alike(facts: Mapping[str, Any], *, remedy: str) -> None:
    """Compare facts between all processes of the group.

    Args:
        facts: values in this process, by the description that the error message uses. Each value can be pickled and
            compared.
        remedy: advice at the end of the error message.

    Raises:
        RuntimeError: a fact differs. Every process raises the error, which lists the value of each process.
    """
    if not in_group():
        return
    everyones = told(dict(facts))
    for name in facts:
        values = [found.get(name) for found in everyones]
        if any(value != values[0] for value in values):
            each = ", ".join(f"{value} in rank {r}" for r, value in enumerate(values))
            raise RuntimeError(f"the processes differ in {name}: {each}; {remedy}")
