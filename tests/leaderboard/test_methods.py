"""Rows of the leaderboard, and whether their methods need task labels."""

import pytest

from avalanche_supermask import Scenario, SupSup, methods, registry
from benchmarks.lib.streams import stream_of
from leaderboard.methods import build_strategy, rows
from leaderboard.rows import Setup


def test_a_method_that_must_be_told_the_task_gets_no_row_on_a_stream_without_task_labels(monkeypatch):
    class Told(SupSup):
        scenario = Scenario(training=True, test=True)

    monkeypatch.setitem(registry._METHODS, "told", Told)
    assert rows()["told"].task_labels
    stream = stream_of("split-digits-class")
    with pytest.raises(ValueError, match="told needs task labels, and this stream has none; leave the row out"):
        build_strategy("told", Setup(stream, {}, {}, 0))


@pytest.mark.parametrize("name", methods())
def test_rows_of_our_methods_agree_with_their_scenarios(name):
    assert rows()[name].task_labels == methods()[name].scenario.test
