"""Copy the descriptions of shared arguments, so that each argument is described only once.

A strategy takes the arguments of its plugin, and a plugin takes those of its base class. Each class lists them in its
signature, so that editors and ``help()`` show them. Each argument is described in the docstring of the class that uses
it, and the description is copied from there into the docstrings of the classes that only pass the argument on.

The signatures themselves are repeated on purpose. Python has no type for "the keyword-only arguments of that function,
and some more" that keeps the defaults: ``Unpack`` of a typed dictionary drops them from what editors show. A test
compares names, types and defaults, so that two lists of the same arguments cannot differ.
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
    """Return those of the values that the constructor of a class takes as arguments, by name.

    Args:
        cls: the class.
        values: values by name, for example ``locals()`` at the start of a function.

    Example:
        >>> class Plugin:
        ...     def __init__(self, *, density): ...
        >>> taken_by(Plugin, {"self": 0, "density": 0.1, "model": None})
        {'density': 0.1}
    """
    return {name: values[name] for name in _parameters(cls) if name in values}


def complete_arguments(cls: type, sources: Sequence[type]) -> None:
    """Complete the docstring of a class with descriptions of arguments that it omits.

    Args:
        cls: the class; its docstring is changed in place if it has a section ``Args:``.
        sources: classes that describe the same arguments; an earlier one takes precedence.
    """
    doc = (
        inspect.cleandoc(cls.__dict__.get("__doc__") or "") + "\n"
    )  # without indentation, which Python 3.13 removes anyway
    mine = _entries(doc)
    known = {name for entry in mine for name in entry.split(", ")}
    described = {name: text for source in reversed(sources) for name, text in _entries(source.__doc__).items()}
    own = _parameters(cls)
    missing = {name: described[name] for name in own if name in described and name not in known}
    if not mine or not missing:
        return
    entries = {**missing, **mine}
    # The order is that of the signature. Entries that are no single argument of the constructor come last.
    order = [*(name for name in own if name in entries), *(name for name in mine if name not in own)]
    cls.__doc__ = doc.replace("".join(mine.values()), "".join(entries[name] for name in order))


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    found = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    return {name: p for name, p in found.items() if name != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def _entries(doc: str | None) -> dict[str, str]:
    """Return the entries of the section ``Args:`` as whole lines, by the text before the colon."""
    _, _, rest = inspect.cleandoc(doc or "").partition("\nArgs:\n")
    section = rest.split("\n\n", 1)[0] + "\n"
    found = [*_ENTRY.finditer(section)]
    bounds = itertools.pairwise([*(entry.start() for entry in found), len(section)])
    return {entry[1]: section[start:end] for entry, (start, end) in zip(found, bounds, strict=True)}
