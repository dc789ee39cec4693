"""Sphinx extension: a parameter whose docstring refers to another class is shown with the text of that class.

Strategies and plugins share most of their parameters. The sources describe each one once, and refer to that place with
"see `SupSupPlugin`". A reader of the site finds the description itself.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from functools import cache
from typing import Any

import avalanche_supermask

REFERENCE = re.compile(r"see `(?P<name>[A-Z]\w+)`(?: for its settings)?")
ENTRY = re.compile(r"^(?P<indent> *)(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: \([^)]*\))?: (?P<text>.*)$")


@cache
def classes() -> dict[str, Any]:
    """Every class of the package, by its name."""
    found = {}
    for module in pkgutil.walk_packages(avalanche_supermask.__path__, "avalanche_supermask."):
        if not module.name.endswith("__main__"):
            members = inspect.getmembers(importlib.import_module(module.name), inspect.isclass)
            found |= {name: value for name, value in members if value.__module__.startswith("avalanche_supermask")}
    return found


@cache
def parameters(name: str) -> dict[str, str]:
    """Description of each parameter of a class, by the parameter's name, references followed."""
    cls = classes().get(name)
    found: dict[str, str] = {}
    if cls is None:
        return found
    sections = re.findall(r"^(?:Args|Attributes):\n((?: .*\n|\n)*)", (inspect.getdoc(cls) or "") + "\n", re.MULTILINE)
    latest = ""
    for line in "".join(sections).splitlines():
        entry = ENTRY.match(line)
        if entry and len(entry["indent"]) == 4:
            latest = entry["names"]
            found[latest] = entry["text"]
        elif latest:
            found[latest] += " " + line.strip()
    return {key: followed(key, value.strip()) for key, value in found.items()}


def followed(parameter: str, text: str) -> str:
    """A description with each reference to another class replaced by what that class says of the same parameter."""

    def description(match: re.Match[str]) -> str:
        return parameters(match["name"]).get(parameter, match[0]).removesuffix(".")

    return REFERENCE.sub(description, text)


def expand(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Replace the references among the parameters of a docstring."""
    latest = ""
    for number, line in enumerate(lines):
        entry = ENTRY.match(line)
        if entry and len(entry["indent"]) == 4:
            latest = entry["names"]
        elif not line.startswith("    "):
            latest = ""
        if latest:
            lines[number] = followed(latest, line)


def setup(app: Any) -> dict[str, bool]:
    """Run before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", expand, priority=100)
    return {"parallel_read_safe": True}
