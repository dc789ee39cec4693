"""Settings of Sphinx, for ``sphinx-build -W docs docs/_build``.

Pages are Markdown; the reference comes from the docstrings.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import avalanche_supermask

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
shutil.copy(HERE.parent / "examples/tour.ipynb", HERE / "tour.ipynb")  # Sphinx reads pages only from this folder

project = "avalanche-supermask"
author = "the avalanche-supermask authors"
copyright = author
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "checkout_links",
    "code_text",
    "mathml",
]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build", "_ext", "jupyter_execute"]

html_theme = "furo"
html_title = f"avalanche-supermask {avalanche_supermask.__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = html_show_sourcelink = False
pygments_style, pygments_dark_style = "friendly", "native"

default_role = "name"  # the role of `Name` in a docstring
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True  # shows defaults as in the source
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_custom_sections = [("Shapes", "notes_style")]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebook contains its pictures; the tests run it


def _copy_leaderboard(app: Any, error: Exception | None) -> None:
    """Copy the leaderboard's interactive page, which is a separate file, to the site."""
    if error is None:
        shutil.copy(HERE.parent / "leaderboard/index.html", Path(app.outdir) / "leaderboard_table.html")


def setup(app: Any) -> None:
    """Connect the hook."""
    app.connect("build-finished", _copy_leaderboard)
