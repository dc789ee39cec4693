"""A text that describes the contents of a file of `save`; the network is not needed."""

from __future__ import annotations

import os

from avalanche_supermask.bits.packed_masks import PackedMasks
from avalanche_supermask.functional import overlap
from avalanche_supermask.named_tensors import decoded
from avalanche_supermask.saving.compact_reading import FROZEN, read_compact

__all__ = ["contents"]


def contents(path: str | os.PathLike[str]) -> str:
    """Table of the tasks in a file: bytes, density and overlap of each mask; and the versions that wrote the file.

    Args:
        path: path of a file of `save`.

    Raises:
        ValueError: the file is damaged, was not written by `save`, or has a later format.
        FileNotFoundError: there is no such file.
    """
    manifest, tensors, codes = read_compact(path)
    shapes = {decoded(n[len(FROZEN) :]): tuple(t.shape) for n, t in tensors.items() if n.startswith(FROZEN)}
    masks = PackedMasks(shapes)
    for slot, code in codes.items():
        masks.commit_code(slot, code)
    weights = sum(t.numel() for n, t in tensors.items() if n.startswith(FROZEN))
    tasks = manifest["extra"]["subnetworks._extra_state"]["tasks"]
    lines = [
        f"{os.fspath(path)}: {os.path.getsize(path):,} bytes, {len(tasks)} tasks over {weights:,} masked weights in "
        f"{len(shapes)} layers",
        f"written by avalanche-supermask {manifest['version']} with torch {manifest['torch']}, "
        f"format {manifest['format']}",
        "",
        f"{'task':>6} {'label':>6} {'mask bytes':>11} {'own bytes':>10} {'density':>8} {'overlap':>8}",
    ]
    for place, (key, slot, label, *_) in enumerate(tasks):
        own = sum(
            t.numel() * t.element_size() for n, t in tensors.items() if n.startswith(f"subnetworks.private.{slot}.")
        )
        if slot not in codes:
            lines.append(f"{key:>6} {_shown(label):>6} {'mixture':>11} {own:>10,}")
            continue
        mask = masks.read(slot)
        kept = sum(int(m.sum()) for m in mask.values())
        earlier = masks.union([other for _, other, *_ in tasks[:place] if other in codes])
        shared = overlap(mask, earlier)
        lines.append(
            f"{key:>6} {_shown(label):>6} {len(codes[slot]):>11,} {own:>10,} {kept / weights:>8.3f} {shared:>8.3f}"
        )
    return "\n".join(lines)


def _shown(label: int | None) -> str:
    return "-" if label is None else str(label)
