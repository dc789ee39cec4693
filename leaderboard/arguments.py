"""Reads the arguments of the command line, and refuses wrong ones in one line before anything is computed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from benchmarks.lib.streams import SUITES, stream_of
from leaderboard.methods import misfit, parse_row

__all__ = ["check_counts", "check_tasks", "fitting", "listed", "make_folder", "seeds_of", "streams_of"]


def listed(text: str, option: str) -> list[str]:
    """Return the entries of a comma-separated list, each once."""
    found = list(dict.fromkeys(entry for entry in (part.strip() for part in text.split(",")) if entry))
    if not found:
        raise ValueError(f"{option} takes a comma-separated list; got {text!r}")
    return found


def streams_of(options: argparse.Namespace) -> list[str]:
    """Return the names of the streams; those whose data must be in a folder need ``--dataset-root``."""
    names = listed(options.streams, "--streams") if options.streams else list(SUITES[options.suite])
    for name in names:
        if not stream_of(name).offline and options.dataset_root is None:
            raise ValueError(
                f"stream {name!r} needs its data: pass --dataset-root DIR (images are downloaded if not there, texts "
                "are read as benchmarks/lib/text.py says), or offline=True in a Stream of yours that reads no file"
            )
    return names


def check_counts(options: argparse.Namespace) -> None:
    """Refuse numbers of workers, epochs and tasks below 1."""
    for name in ("workers", "epochs", "tasks"):
        count = getattr(options, name, None)
        if count is not None and count < 1:
            raise ValueError(f"--{name} must be at least 1; got {count}")


def check_tasks(tasks: int | None, stream: str) -> None:
    """Refuse more tasks than a stream has, before its cells fail."""
    if tasks is not None and tasks > stream_of(stream).tasks:
        raise ValueError(
            f"--tasks {tasks}: stream {stream!r} has {stream_of(stream).tasks} tasks; expected at most that"
        )


def seeds_of(text: str) -> list[int]:
    """Return the seeds in a comma-separated list, each once."""
    try:
        seeds = list(dict.fromkeys(int(seed) for seed in listed(text, "--seeds")))
    except ValueError:
        raise ValueError(f"--seeds takes comma-separated whole numbers; got {text!r}") from None
    outside = next((seed for seed in seeds if not 0 <= seed < 2**32), None)
    if outside is not None:
        raise ValueError(f"--seeds takes numbers from 0 to 2**32 - 1, as NumPy does; got {outside}")
    return seeds


def fitting(streams: Sequence[str], names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of stream and row that can run; a line tells why another one is left out.

    Raises:
        ValueError: no pair can run.
    """
    pairs: list[tuple[str, str]] = []
    left_out: list[str] = []
    for stream, row in product(streams, names):
        reason = misfit(parse_row(row)[0], stream_of(stream))
        if reason:
            left_out.append(f"{row} on {stream} is left out: {reason}")
        else:
            pairs.append((stream, row))
    if not pairs:
        raise ValueError("; ".join(left_out))
    for line in left_out:
        print(line, file=sys.stderr)
    return pairs


def make_folder(folder: Path) -> None:
    """Make a folder for results, and refuse one that no file can be written into, before anything is computed."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"--out {folder}: no file can be written into this folder; choose another one")
