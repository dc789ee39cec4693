"""Atomic writing of files: a crash never leaves an incomplete file under the target's name."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

__all__ = ["written_whole"]

# The libraries that write files raise these errors, and no OSError, if the system does not take all bytes.
_WRITERS = ("I/O error", "inline_container")


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[str]:
    """Context with a temporary file beside the target; the file replaces the target if the block ends without an error.

    Args:
        path: path of the target. An existing file stays unchanged until it is replaced, and its permissions are kept.
            If the path is a symbolic link, the file that it points to is replaced.

    Yields:
        Path of the temporary file, which the block must write.

    Raises:
        FileNotFoundError: the folder of the target does not exist.
        IsADirectoryError: the target is a folder.
        PermissionError: the folder of the target does not allow new files.
        OSError: the target is a device or a pipe, or the file cannot be written, for example because the disk is full.
    """
    target = Path(path)
    if not target.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent} to write {target.name} into; create it first")
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; expected the path of a file, for example {target / 'name'}")
    target = Path(os.path.realpath(target))
    if target.exists() and not target.is_file():
        raise OSError(f"{target} is a device or a pipe; expected the path of a file")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        temporary.touch(exist_ok=False)  # raises Python's own error where the folder allows no new file
        try:
            yield os.fspath(temporary)
        except (SafetensorError, RuntimeError) as error:
            if not any(name in str(error) for name in _WRITERS):
                raise
            raise OSError(f"{target} could not be written; is the disk full? An existing file is unchanged") from error
        if target.exists():
            shutil.copymode(target, temporary)
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
