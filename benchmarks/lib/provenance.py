"""The origin of a result, which every result file contains: its command, versions, commit and machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from avalanche_supermask.saving.atomic_write import written_whole

__all__ = ["provenance", "write_json", "write_result"]

PACKAGES = ("avalanche-lib", "avalanche-supermask", "numpy", "torch")


def provenance(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the part of a result file that describes its origin.

    Args:
        module: name of the module that was run with ``python -m``.
        arguments: arguments of its command line; absolute paths are written as DIR.
    """
    words = ["DIR" if Path(word).is_absolute() else word for word in arguments]
    return {
        "command": " ".join(["python -m", module, *words]),
        "versions": {name: version(name) for name in PACKAGES},
        "commit": COMMIT,
        "machine": {
            "platform": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_initialized() else None,
            "python": platform.python_version(),
        },
    }


def write_result(path: Path, module: str, arguments: Sequence[str], **content: Any) -> None:
    """Write a result file: its origin, then its content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**provenance(module, arguments), **content})


def write_json(path: Path, content: Mapping[str, Any], *, sort_keys: bool = False) -> None:
    """Write a JSON file atomically: after an interruption, the file has its old content or the whole new content."""
    with written_whole(path) as temporary:
        Path(temporary).write_text(json.dumps(content, indent=1, sort_keys=sort_keys) + "\n")


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!/*results", ":!/README.md")
    return (git("rev-parse", "HEAD") or "unknown") + ("+changes" if changed else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


COMMIT = _commit()  # Read at import, because the checkout may be at another commit when a result is written.
