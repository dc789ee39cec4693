"""One rule chooses settings on held-out training data, and each row uses the settings chosen for it."""

import json

import pytest

import leaderboard.cell
from avalanche_supermask import registry
from leaderboard.cell import settings_of
from leaderboard.methods import parse_row, rows
from leaderboard.search import search


def test_a_search_tries_each_axis_and_keeps_the_best(tmp_path, monkeypatch):
    seen = []

    def validation_accuracy(cell, out, dataset_root, device, modules):
        seen.append(cell.settings)
        assert cell.validation == 0.1
        assert cell.seed == 1000, "a seed that no result uses"
        return 0.5 + (cell.settings["strength"] == 1e3) * 0.2 + (cell.settings["optimizer"] == ("sgd", 0.05)) * 0.1

    monkeypatch.setattr("leaderboard.search._validation_accuracy", validation_accuracy)
    found = search("permuted-digits", "ewc", out=tmp_path, dataset_root=None)
    assert found["settings"] == {"strength": 1e3, "optimizer": ("sgd", 0.05), "head": "multi"}
    assert found["validation_accuracy"] == pytest.approx(0.8)
    assert len(seen) == len(found["trials"]) == 6 + 3 + 1, "what was tried is not tried again"


def test_the_budget_is_the_same_for_everyone():
    trials = {name: 1 + sum(len(values) - 1 for values in row.axes.values()) for name, row in rows().items()}
    assert max(trials.values()) <= 10


def test_what_a_rows_name_fixes_is_not_searched(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "leaderboard.search._validation_accuracy", lambda cell, out, root, device, modules: cell.settings["mask_lr"]
    )
    found = search("split-digits", "supsup@0.05", out=tmp_path, dataset_root=None)
    assert {t["settings"]["density"] for t in found["trials"]} == {0.05}
    assert found["settings"]["mask_lr"] == 0.1


def test_a_search_goes_over_five_tasks_or_the_whole_stream(tmp_path, monkeypatch):
    tasks = {}
    monkeypatch.setattr(
        "leaderboard.search._validation_accuracy",
        lambda cell, out, root, device, modules: tasks.setdefault(cell.method, cell.tasks),
    )
    for row in ("ewc", "lwf", "exssnet@0.02"):
        search("permuted-mnist", row, out=tmp_path, dataset_root=None)
    assert tasks == {"ewc": 5, "lwf": 10, "exssnet@0.02": 5}


def test_rows_find_their_settings(tmp_path, monkeypatch):
    chosen = {
        "permuted-mnist": {
            "exssnet": {"settings": {"mask_lr": 0.5, "density": 0.2}},
            "exssnet@0.02": {"settings": {"mask_lr": 0.7, "density": 0.02}},
        },
        "clinc150": {"exssnet@0.1": {"settings": {"mask_lr": 0.3, "density": 0.1}}},
    }
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(chosen))
    monkeypatch.setattr(leaderboard.cell, "SETTINGS", path)
    assert settings_of("permuted-mnist", "exssnet")["mask_lr"] == 0.5
    assert settings_of("rotated-mnist", "exssnet")["mask_lr"] == 0.5, "rotated takes permuted's settings"
    assert settings_of("permuted-mnist", "ssnet")["mask_lr"] == 0.5, "the control runs as what it controls"
    low = settings_of("permuted-mnist", "exssnet@0.02")
    assert (low["mask_lr"], low["density"]) == (0.7, 0.02)
    assert settings_of("permuted-mnist", "exssnet+kkt@0.02")["mask_lr"] == 0.7, "an option changes nothing else"
    other = settings_of("permuted-mnist", "exssnet@0.05")
    assert (other["mask_lr"], other["density"]) == (0.5, 0.05)
    assert settings_of("clinc150", "exssnet")["mask_lr"] == 0.3, "searched at its default density"
    assert settings_of("clinc150", "exssnet+kkt")["mask_lr"] == 0.3
    assert settings_of("split-mnist", "replay")["memory"] == 200
    assert settings_of("split-mnist-ordered", "replay")["memory"] == 200


def test_committed_settings_are_among_the_trials():
    for stream, methods in json.loads(leaderboard.cell.SETTINGS.read_text()).items():
        for row, found in methods.items():
            parse_row(row)
            best = max(trial["validation_accuracy"] for trial in found["trials"])
            assert found["validation_accuracy"] == best, (stream, row)
            if "by_hand" not in found:
                assert found["settings"] in [t["settings"] for t in found["trials"]]


def test_a_method_of_somebody_else_is_searched_by_the_same_rule(tmp_path, monkeypatch):
    class Theirs:
        def __init__(self, model, *, density=0.3, mask_lr=None):
            pass

    monkeypatch.setattr(registry, "_METHODS", {**registry._METHODS, "theirs": Theirs})
    tried = []

    def validation_accuracy(cell, out, root, device, modules):
        tried.append(cell.settings)
        assert modules == ["their.module"]
        return 0.5 + (cell.settings == {"density": 0.2, "mask_lr": 5e-2}) * 0.1

    monkeypatch.setattr("leaderboard.search._validation_accuracy", validation_accuracy)
    found = search("split-digits", "theirs", out=tmp_path, dataset_root=None, modules=["their.module"])
    assert tried[0] == {}, "its own defaults come first"
    assert len(tried) <= 10
    assert found["validation_accuracy"] == max(trial["validation_accuracy"] for trial in found["trials"])


def test_a_row_without_a_setting_says_so(tmp_path):
    with pytest.raises(ValueError, match="'ssnet' has no setting to search: give its class search_axes"):
        search("split-digits", "ssnet", out=tmp_path, dataset_root=None)
