"""Sphinx: ``sphinx-build -W docs docs/_build``. Pages are Markdown; the reference comes from the docstrings."""

from __future__ import annotations

import re
from typing import Any

import avalanche_supermask

project = "avalanche-supermask"
author = "the avalanche-supermask authors"
copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "draw_architecture.py"]
html_theme = "furo"
html_title = f"avalanche-supermask {avalanche_supermask.__version__}"
default_role = "code"  # `Name` in a docstring
autodoc_typehints = "none"  # the signatures show them, and the docstrings say what they mean
autodoc_member_order = "bysource"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_custom_sections = [("Shapes", "notes_style")]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"]  # links to files of the checkout, which a test of its own follows


def _equations(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Indented lines of a docstring stand as they are; |S| is no substitution; the formatter's marks are left out."""
    found: list[str] = []
    for line in (line.replace("  # fmt: skip", "") for line in lines):
        starts = what == "module" and line.startswith("    ") and found and not found[-1].strip()
        if starts and not _in_block(found):
            found += ["::", ""]
        escape = not line.startswith("    ")
        found.append(re.sub(r"(``.*?``)|\|", lambda m: m[1] or r"\|", line) if escape else line)
    lines[:] = found


def _in_block(lines: list[str]) -> bool:
    """Whether the last line that is not empty is indented."""
    return next((line.startswith("    ") for line in reversed(lines) if line.strip()), False)


def setup(app: Any) -> None:
    """Hooks."""
    app.connect("autodoc-process-docstring", _equations)
