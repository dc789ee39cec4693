"""Killed processes and damaged files; docs/reliability.md has the full measurement."""

import pytest

from benchmarks.faults.reliability import METHODS, kill_and_resume, survive_damage


def survives(method, kills):
    found = kill_and_resume(method, kills=kills, seed=1)
    print(f"{method}: {found['kills']} kills, {found['runs']} runs")
    assert found["kills"] >= kills
    assert found["bit_identical"] == found["runs"] > 0
    assert found["drift"] == 0.0


def test_a_killed_process_loses_nothing():
    survives("exssnet", 2)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_many_killed_processes_lose_nothing(method):
    survives(method, 10)


def test_no_damaged_file_is_loaded_as_another_model():
    found = survive_damage(files=30, seed=2)
    assert found["wrong"] == 0
    assert found["errors"] > 20
