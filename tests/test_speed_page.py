"""The page of costs agrees with its result files."""

from pathlib import Path

from benchmarks.costs.speed_page import _cell, page

ROOT = Path(__file__).parent.parent


def test_the_page_is_written_from_the_files():
    assert (ROOT / "docs/speed.md").read_text() == page(ROOT / "benchmarks/results")


def test_a_missed_target_is_bold_and_a_met_one_is_not():
    assert _cell(1.361, 1.35) == "**1.36** (1.35)"
    assert _cell(1.352, 1.35) == "1.35 (1.35)"
    assert _cell(0.1, None) == "0.10"
