"""Atomic writing of files: a crash never leaves an incomplete file under the target's name."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

__all__ = ["written_whole"]


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[str]:
    """Context with a temporary file beside the target; the file replaces the target if the block ends without an error.

    Args:
        path: path of the target. An existing file stays unchanged until it is replaced.

    Yields:
        Path of the temporary file, which the block must write.

    Raises:
        FileNotFoundError: the folder of the target does not exist.
        IsADirectoryError: the target is a folder.
        PermissionError: the folder of the target does not allow new files.
    """
    target = Path(path)
    if not target.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent} to write {target.name} into; create it first")
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; expected the path of a file, for example {target / 'name'}")
    temporary = target.absolute().with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        temporary.touch(exist_ok=False)  # raises Python's own error where the folder allows no new file
        yield os.fspath(temporary)
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
