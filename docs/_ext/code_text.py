"""Sphinx extension that formats code in docstrings as code, and removes marks for the formatter."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.domains.python import PyXRefRole


class Name(PyXRefRole):
    """The role of `Name` in a docstring: a link if the site describes the class, otherwise code."""

    def process_link(
        self, env: Any, refnode: Any, has_explicit_title: bool, title: str, target: str
    ) -> tuple[str, str]:
        """Search a class in all modules, because docstrings name it without its module."""
        title, target = super().process_link(env, refnode, has_explicit_title, title, target)
        if re.fullmatch(r"[A-Z]\w+(\.\w+)?", target):
            refnode["refspecific"] = True
        return title, target


def equations(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make indented lines of a module's docstring literal blocks, and escape ``|S|``, which reST would replace."""
    found: list[str] = []
    for line in lines:
        starts = what == "module" and line.startswith("    ") and found and not found[-1].strip()
        if starts and not _in_block(found):
            found += ["::", ""]
        escape = not line.startswith("    ")
        found.append(re.sub(r"(``.*?``)|\|", lambda m: m[1] or r"\|", line) if escape else line)
    lines[:] = found


def without_marks(app: Any, tree: nodes.document) -> None:
    """Remove the formatter's marks from all code."""
    for block in tree.findall(nodes.literal_block):
        shown = re.sub(r" *# fmt: skip", "", block.astext())
        block.rawsource = shown
        block.children = [nodes.Text(shown)]


def _in_block(lines: list[str]) -> bool:
    """Return whether the last line that is not empty is indented."""
    return next((line.startswith("    ") for line in reversed(lines) if line.strip()), False)


def setup(app: Any) -> dict[str, bool]:
    """Connect the hooks."""
    app.add_role("name", Name())
    app.connect("autodoc-process-docstring", equations)
    app.connect("doctree-read", without_marks)
    return {"parallel_read_safe": True}
