"""Sphinx extension that replaces links to files of the checkout by links to the pages of the site that show them.

The Markdown of this project is read on the site and in the checkout. A link such as ``../leaderboard/results/NOTES.md``
works in the checkout; on the site its target is the page of the leaderboard.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

TARGETS: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"leaderboard/results/(?:LEADERBOARD|NOTES)\.md", "/leaderboard.md"),
    (r"leaderboard/results/([\w-]+)", r"/leaderboard.md#\1"),
    (r"leaderboard/index\.html", "/leaderboard.md"),
    (r"examples/tour\.ipynb", "/tour.ipynb"),
    (r"examples/(\w+)\.py", lambda m: f"/gallery.md#{m[1].replace('_', '-')}"),
    (r"examples", "/gallery.md"),
    (r"CONTRIBUTING\.md", "/contributing.md"),
    (r"CHANGELOG\.md", "/changelog.md"),
    (r"docs/([\w/]+\.md)", r"/\1"),
]


def redirect(text: str) -> str:
    """Return Markdown with the targets of its links replaced."""
    for pattern, page in TARGETS:
        text = re.sub(rf"(?<=\]\()(?:\.\./)*{pattern}(?=[#)])", page, text)
        text = re.sub(r"(\]\(/[\w/.]+)#[\w-]+(#[\w-]+\))", r"\1\2", text)
    return text


def page(app: Any, name: str, content: list[str]) -> None:
    """Replace the links of a page, in place."""
    content[0] = redirect(content[0])


def included(app: Any, path: Any, parent: str, content: list[str]) -> None:
    """Replace the links of a file that a page includes, in place."""
    content[0] = redirect(content[0])


def setup(app: Any) -> dict[str, bool]:
    """Connect the hooks."""
    app.connect("source-read", page)
    app.connect("include-read", included)
    return {"parallel_read_safe": True}
