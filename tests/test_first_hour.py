"""The code on the page "Your first hour" prints the output that the page shows."""

import os
import re
from pathlib import Path

import pytest
import torch

from avalanche_supermask.__main__ import main

PAGE = Path(__file__).parents[1] / "docs/first_hour.md"
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"[+-]?\d[\w.,+]*")


def form(text):
    """Return a text without its numbers and without the widths of its columns."""
    return re.sub(r"[ ]+", " ", NUMBER.sub("N", text)).strip()


def numbers(text):
    """Return the fractions and the whole numbers of a text, without the line of the versions."""
    lines = [line for line in text.splitlines() if not line.startswith("written by ")]
    found = [n.rstrip(".,").replace(",", "") for n in re.findall(r"[+-]?\d[\d,.]*", "\n".join(lines))]
    return [float(n) for n in found if "." in n], [int(n) for n in found if "." not in n]


@pytest.mark.filterwarnings("ignore:No loggers")
@pytest.mark.filterwarnings("ignore:task label .* was never trained")
def test_the_first_hour_prints_what_it_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names, shown = {"__name__": "__main__"}, 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for kind, text in BLOCK.findall(PAGE.read_text()):
            if kind == "python":
                exec(compile(text, PAGE.name, "exec"), names)
            elif text.startswith("python -m avalanche_supermask "):
                main(text.split()[3:])
            elif kind == "text":
                printed = capsys.readouterr().out
                assert form(printed) == form(text)
                # Another processor adds numbers in another order, so numbers may differ a little.
                (fractions, wholes), (expected, expected_wholes) = numbers(printed), numbers(text)
                assert fractions == pytest.approx(expected, abs=0.05)
                assert wholes == pytest.approx(expected_wholes, rel=0.05, abs=3)
                shown += 1
    finally:
        torch.set_num_threads(threads)
    assert shown == 10
    assert {"tasks.safetensors", "forgetting.png", "logs"} <= set(os.listdir(tmp_path))
