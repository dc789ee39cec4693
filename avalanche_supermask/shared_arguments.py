"""One source for arguments that several classes take: each is described once.

A strategy takes what its plugin takes, and a plugin what its base takes. Each class lists them in its signature, so
that editors and ``help()`` show them. Their descriptions are written where they belong, and are copied from there into
the docstrings of the classes that only pass them on.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["complete_arguments", "taken_by"]

_ENTRY = re.compile(r"(?m)^( +)(\*{0,2}\w+(?:, \w+)*): ")


def taken_by(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that a class takes as arguments, by name.

    Args:
        cls: whose constructor is called with them.
        values: as ``locals()`` at the start of a function has its arguments.

    Example:
        >>> class Plugin:
        ...     def __init__(self, *, density): ...
        >>> taken_by(Plugin, {"self": 0, "density": 0.1, "model": None})
        {'density': 0.1}
    """
    return {name: values[name] for name in _parameters(cls) if name in values}


def complete_arguments(cls: type, sources: Sequence[type]) -> None:
    """Describe the arguments of a class that its docstring leaves out, as their sources describe them.

    Args:
        cls: changed in place: its docstring, if that has a section ``Args:``.
        sources: classes that take the same arguments, the nearest first.
    """
    own = _parameters(cls)
    doc = cls.__dict__.get("__doc__")
    if not doc or "    Args:\n" not in doc:
        return
    described = _entries(doc)
    for source in reversed(sources):
        described = {**_entries(source.__doc__ or ""), **described}
    mine = _entries(doc)
    known = {name for entry in mine for name in entry.split(", ")}
    if not any(name in described for name in own if name not in known):
        return
    ordered = [name for name in own if name in mine or (name in described and name not in known)]
    grouped = [name for name in mine if name not in own]  # several in one entry, or no argument of the constructor
    # Entries that stand alone follow the signature; what else the docstring has stays at its end.
    first, *_, last = [*mine.values()] * 2  # twice, as there may be only one
    text = "".join({**described, **mine}[name] for name in [*ordered, *grouped])
    start, end = doc.index(first), doc.index(last) + len(last)
    cls.__doc__ = doc[:start] + text + doc[end:]


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    found = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    return {name: p for name, p in found.items() if name != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def _entries(doc: str) -> dict[str, str]:
    """Entries of the section ``Args:``, whole lines, by what stands before the colon."""
    if "    Args:\n" not in doc:
        return {}
    section = doc.split("    Args:\n", 1)[1].split("\n\n", 1)[0] + "\n"
    starts = [m for m in _ENTRY.finditer(section) if len(m[1]) == 8]
    ends = [m.start() for m in starts[1:]] + [len(section)]
    return {m[2]: section[m.start() : end] for m, end in zip(starts, ends, strict=True)}
