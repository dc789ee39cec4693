"""The command ``python -m avalanche_supermask FILE``, which shows the contents of a saved file."""

from __future__ import annotations

import argparse
import sys


def main(arguments: list[str] | None = None) -> int:
    """Print the contents of each file."""
    parser = argparse.ArgumentParser(
        prog="python -m avalanche_supermask", description="Show what a file written by save() holds."
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="file of save()")
    options = parser.parse_args(arguments)
    from avalanche_supermask.saving.contents import contents  # PyTorch is not needed for the help

    try:
        for file in options.files:
            print(contents(file))
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
