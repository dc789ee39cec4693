"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

__all__ = ["written_whole"]


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[str]:
    """A temporary file beside the target, which takes its place once the block has ended without an error.

    Args:
        path: the target; what is there stays until then.

    Yields:
        Name of the temporary file, for the block to make.
    """
    target = Path(path)
    temporary = target.absolute().with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        yield os.fspath(temporary)
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
