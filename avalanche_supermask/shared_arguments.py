"""One source for arguments that several classes take: each is described once.

A strategy takes what its plugin takes, and a plugin what its base takes. Each class lists them in its signature, so
that editors and ``help()`` show them. Their descriptions are written where they belong, and are copied from there into
the docstrings of the classes that only pass them on.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["complete_arguments", "taken_by"]

_ENTRY = re.compile(r"(?m)^    (\*{0,2}\w+(?:, \w+)*): ")


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
    doc = inspect.cleandoc(cls.__dict__.get("__doc__") or "") + "\n"  # without its indentation, as of Python 3.13
    mine = _entries(doc)
    known = {name for entry in mine for name in entry.split(", ")}
    described = {name: text for source in reversed(sources) for name, text in _entries(source.__doc__).items()}
    own = _parameters(cls)
    missing = {name: described[name] for name in own if name in described and name not in known}
    if not mine or not missing:
        return
    entries = {**missing, **mine}
    # In the order of the signature; entries of several arguments, or of none of the constructor's, stay at the end.
    order = [*(name for name in own if name in entries), *(name for name in mine if name not in own)]
    cls.__doc__ = doc.replace("".join(mine.values()), "".join(entries[name] for name in order))


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    found = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    return {name: p for name, p in found.items() if name != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def _entries(doc: str | None) -> dict[str, str]:
    """Entries of the section ``Args:``, whole lines, by what stands before the colon."""
    _, _, rest = inspect.cleandoc(doc or "").partition("\nArgs:\n")
    section = rest.split("\n\n", 1)[0] + "\n"
    found = [*_ENTRY.finditer(section)]
    bounds = itertools.pairwise([*(entry.start() for entry in found), len(section)])
    return {entry[1]: section[start:end] for entry, (start, end) in zip(found, bounds, strict=True)}
