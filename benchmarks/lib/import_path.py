"""Imports an object that the user names by ``module`` or ``module:attribute``."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["imported"]


def imported(path: str) -> Any:
    """Return the module that a path names, or the attribute of a module.

    Args:
        path: ``module`` or ``module:attribute``, for example ``package.module:Class``.

    Raises:
        ValueError: the path has another form, or there is no such module or attribute.

    Example:
        >>> imported("math:pi")
        3.141592653589793
    """
    module, colon, attribute = path.partition(":")
    if not all(part.isidentifier() for part in module.split(".")) or bool(colon) != attribute.isidentifier():
        raise ValueError(
            f"{path!r} is no import path; expected the form package.module or package.module:name, of a module that "
            "`python -c 'import package.module'` finds"
        )
    try:
        found = importlib.import_module(module)
        return getattr(found, attribute) if colon else found
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from None
