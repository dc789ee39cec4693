"""The leaderboard from the command line: commands, files, a second run, a failure."""

import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.lib.streams import STREAMS, build_stream
from leaderboard import pool
from leaderboard.__main__ import main
from leaderboard.aggregate import _NEEDED
from leaderboard.cell import Cell, run_cell, settings_of
from leaderboard.forecast import forecast
from leaderboard.methods import parse_row
from leaderboard.pool import _context, is_done, run_cells

ROOT = Path(__file__).parents[2]
SMALL = ["--streams", "split-digits", "--tasks", "2", "--epochs", "2", "--seeds", "0", "--workers", "2"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Return the folder of a finished small run."""
    folder = tmp_path_factory.mktemp("leaderboard")
    command = [
        sys.executable,
        "-m",
        "leaderboard",
        "run",
        *SMALL,
        "--methods",
        "naive,exssnet@0.2",
        "--out",
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder


@pytest.mark.filterwarnings("ignore:task label:UserWarning")  # a cell evaluates tasks before they are learned
@pytest.mark.parametrize("method", ["supsup+entropy", "exssnet+gaussian", "supsup+combined"])
def test_whole_batches_of_one_task_are_a_column_of_their_own(method, tmp_path):
    cell = Cell("split-digits", method, 0, settings_of("split-digits", method), epochs=1, tasks=2)
    found = run_cell(cell, dataset_root=None, tb_dir=None)
    method = method.partition("+")[0]
    given = Cell("split-digits", method, 0, settings_of("split-digits", method), epochs=1, tasks=2)
    reference = run_cell(given, dataset_root=None, tb_dir=None)
    assert "batch_accuracy" not in reference
    assert found["batch_accuracy"] == pytest.approx(reference["average_accuracy"], abs=0.05)


def test_it_ends_with_the_table_and_where_everything_is(out):
    printed = (out / "stdout").read_text()
    assert "split-digits" in printed
    assert "exssnet@0.2" in printed
    assert str(out / "LEADERBOARD.md") in printed
    assert f"tensorboard --logdir {out / 'tb'}" in printed


def test_result_files_say_everything(out):
    result = json.loads((out / "split-digits" / "exssnet@0.2" / "seed0.json").read_text())
    assert (result["method"], result["stream"], result["seed"]) == ("exssnet@0.2", "split-digits", 0)
    matrix = result["accuracy_matrix"]
    assert [len(row) for row in matrix] == [2, 2]
    assert result["average_accuracy"] == pytest.approx(sum(matrix[-1]) / 2)
    assert result["forgetting"] == result["bwt"] == result["output_drift"] == 0.0
    assert 0 < result["bytes_per_task"] < result["bytes_total"]
    assert result["train_seconds"] > 0
    assert result["eval_seconds"] > 0
    assert result["eval_cpu_seconds"] > 0
    assert result["peak_memory_bytes"] > 50e6
    assert 1 > result["free_share"][0] >= result["free_share"][1] > 0.5
    (one, share), (_, other) = result["mask_overlap"]
    assert one == other == 1.0
    assert 0 < share < 1
    assert result["config"]["settings"]["density"] == 0.2
    assert result["config"]["epochs"] == 2
    stream = build_stream("split-digits", seed=0)
    sides = (stream.train_stream[:2], stream.test_stream[:2])
    assert result["samples"] == [[len(experience.dataset) for experience in side] for side in sides]
    assert {"torch", "avalanche-lib"} <= result["versions"].keys()
    assert result["machine"]["threads"] == 1
    assert result["command"].startswith("python -m leaderboard run")
    assert result["commit"]


def test_tensorboard_has_accuracy_and_forgetting_curves(out):
    events = EventAccumulator(str(out / "tb" / "split-digits" / "naive" / "seed0"), size_guidance={"scalars": 0})
    tags = events.Reload().Tags()["scalars"]
    first = "Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000"
    assert first in tags
    assert [round(e.value, 4) for e in events.Scalars(first)] == [
        round(row[0], 4)
        for row in json.loads((out / "split-digits" / "naive" / "seed0.json").read_text())["accuracy_matrix"]
    ]
    assert any(tag.startswith("ExperienceForgetting/") for tag in tags)


def naive_images(out):
    return EventAccumulator(str(out / "tb" / "split-digits" / "naive" / "seed0")).Reload().Tags()["images"]


def test_tensorboard_can_sort_methods_and_shows_the_matrix(out):
    events = EventAccumulator(str(out / "tb" / "split-digits" / "exssnet@0.2" / "seed0")).Reload()
    result = json.loads((out / "split-digits" / "exssnet@0.2" / "seed0.json").read_text())
    (final,) = events.Scalars("final/average_accuracy")
    assert final.value == pytest.approx(result["average_accuracy"])
    plugin = events.SummaryMetadata("_hparams_/session_start_info").plugin_data
    assert plugin.plugin_name == "hparams"
    assert b"exssnet@0.2" in plugin.content
    for name in ("accuracy matrix", "mask overlap", "capacity"):
        (image,) = events.Images(name)
        assert image.width > 100
    assert "mask overlap" not in naive_images(out), "a method without masks has no overlap"


def test_a_second_run_skips_what_is_done_and_reruns_what_changed(out):
    path = out / "split-digits" / "naive" / "seed0.json"
    cell = Cell("split-digits", "naive", 0, settings_of("split-digits", "naive"), epochs=2, tasks=2)
    assert is_done(cell, out)
    written = path.stat().st_mtime_ns
    assert run_cells([cell], out=out, workers=1) == {}
    assert path.stat().st_mtime_ns == written
    assert not is_done(Cell("split-digits", "naive", 0, cell.settings, epochs=3, tasks=2), out)
    assert not is_done(Cell("split-digits", "naive", 0, {**cell.settings, "head": "shared"}, epochs=2, tasks=2), out)


def test_a_result_of_another_sample_is_run_again(out, tmp_path, monkeypatch):
    cell = Cell("split-digits", "naive", 0)
    assert "sample" not in cell.config(), "all data are used"
    sampled = replace(STREAMS["split-digits"], sample="at most 20 samples per class")
    monkeypatch.setitem(STREAMS, "split-digits", sampled)
    assert cell.config()["sample"] == "at most 20 samples per class"
    (tmp_path / cell.path).parent.mkdir(parents=True)
    (tmp_path / cell.path).write_text(json.dumps({"config": cell.config()}))
    assert is_done(cell, tmp_path)
    monkeypatch.setitem(STREAMS, "split-digits", replace(sampled, sample="at most 40 samples per class"))
    assert not is_done(cell, tmp_path)


def test_half_a_file_is_not_a_result(out, tmp_path):
    cell = Cell("split-digits", "naive", 0, settings_of("split-digits", "naive"), epochs=2, tasks=2)
    target = tmp_path / cell.path
    target.parent.mkdir(parents=True)
    target.write_text((out / cell.path).read_text()[:100])
    assert not is_done(cell, tmp_path)


def test_json_of_another_kind_is_not_a_result(tmp_path, capsys):
    cell = Cell("split-digits", "naive", 0)
    (tmp_path / cell.path).parent.mkdir(parents=True)
    (tmp_path / cell.path).write_text("[1, 2]")
    assert not is_done(cell, tmp_path)
    assert main(["report", "--results", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "seed0.json is not a result file" in capsys.readouterr().err


def test_two_runs_in_one_folder_compute_each_cell_once(tmp_path):
    cell = Cell("split-digits", "naive", 0, settings_of("split-digits", "naive"), epochs=1, tasks=1)
    computed = []

    def compute(_, **__):
        computed.append(1)
        time.sleep(0.2)  # so that the other run arrives while this one computes
        return {"config": cell.config()}

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as runs:
        patch.setattr(pool, "attempt", compute)
        list(runs.map(lambda _: pool._write_result(cell, tmp_path, None, "cpu", (), True), range(2)))
    assert computed == [1]
    assert is_done(cell, tmp_path)
    assert list((tmp_path / cell.path).parent.iterdir()) == [tmp_path / cell.path]


def test_the_error_of_a_killed_cell_is_not_that_of_an_earlier_run(tmp_path, monkeypatch):
    cell = Cell("split-digits", "naive", 0)
    killed = pool._read_error(cell, tmp_path, -9)
    assert killed.startswith("the process was killed by SIGKILL, for example because memory ran out")
    old = (tmp_path / cell.path).with_suffix(".error")
    old.parent.mkdir(parents=True)
    old.write_text("the error of an earlier run")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "attempt", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool._write_result(cell, tmp_path, None, "cpu", (), True)
    assert pool._read_error(cell, tmp_path, -9) == killed


def test_the_same_cell_gives_the_same_numbers(out, tmp_path):
    cell = Cell("split-digits", "exssnet@0.2", 0, settings_of("split-digits", "exssnet@0.2"), epochs=2, tasks=2)
    run_cells([cell], out=tmp_path, workers=1, quiet=True)
    a, b = (json.loads((folder / cell.path).read_text()) for folder in (out, tmp_path))
    assert a["accuracy_matrix"] == b["accuracy_matrix"]


def test_a_cell_that_fails_does_not_stop_the_others(tmp_path):
    bad = Cell("split-digits", "exssnet", 0, {"density": 7.0}, epochs=1, tasks=1)
    good = Cell("split-digits", "naive", 0, settings_of("split-digits", "naive"), epochs=1, tasks=1)
    failed = run_cells([bad, good], out=tmp_path, workers=2, quiet=True)
    assert list(failed) == [str(bad.path)]
    assert "density must be a fraction in (0, 1]" in failed[str(bad.path)]
    assert is_done(good, tmp_path)
    assert not is_done(bad, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "--streams", "mnist"], "unknown stream 'mnist'"),
        (["run", "--methods", "ewcc"], "unknown method 'ewcc'; expected one of naive"),
        (["run", "--methods", "exssnet@ten"], "'ten' after @ is not a density"),
        (["run", "--methods", "naive+kkt"], "unknown row 'naive+kkt': the options of naive are default"),
        (["run", "--methods", "exssnet+"], "unknown row 'exssnet+': the options of exssnet are oneshot, "),
        (["run", "--methods", "ssnet+kkt"], "unknown row 'ssnet+kkt': ssnet has no options"),
        (["run", "--methods", "exssnet@"], "'' after @ is not a density"),
        (["run", "--methods", "naive@0.5"], "unknown row 'naive@0.5': naive has no density; leave out @0.5"),
        (["run", "--methods", "clnp@0.1"], "clnp has no density"),
        (["run", "--methods", ","], "--methods takes a comma-separated list; got ','"),
        (["run", "--methods", "der"], "upstream's DER passes no task labels on; run it on a stream without them"),
        (["run", "--out", __file__, "--methods", "naive"], "File exists"),
        (["run", "--retries", "1", "--methods", "naive"], "--retries 1 is of a Ray cluster: add --engine ray"),
        (["run", "--gpus-per-cell", "0.5"], "--gpus-per-cell 0.5 is of a Ray cluster: add --engine ray"),
        (["search", "--settings", __file__, "--methods", "naive"], "is not a JSON file"),
        (["run", "--suite", "mnist"], "pass --dataset-root DIR"),
        (["run", "--tasks", "9", "--streams", "split-digits"], "--tasks 9: stream 'split-digits' has 5 tasks"),
        (["run", "--epochs", "0"], "--epochs must be at least 1; got 0"),
        (["run", "--workers", "0"], "--workers must be at least 1; got 0"),
        (["run", "--methods", "exssnet@2"], "'2' after @ is not a density"),
        (["run", "--seeds", "one"], "--seeds takes comma-separated whole numbers; got 'one'"),
        (["run", "--seeds", "0,-1"], "--seeds takes numbers from 0 to 2**32 - 1, as NumPy does; got -1"),
        (["report", "--results", "/nonexistent", "--out", "/tmp"], "no results below /nonexistent"),
    ],
)
def test_wrong_arguments_get_one_line(arguments, complaint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_dry_run_lists_the_cells_and_how_long_they_may_take(out, capsys):
    assert main(["run", *SMALL, "--methods", "naive,joint", "--out", str(out), "--dry-run"]) == 0
    done, to_run, total = capsys.readouterr().out.splitlines()
    assert done.split() == ["done", "split-digits/naive/seed0.json"]
    assert re.fullmatch(r"to run  about \d+ s +split-digits/joint/seed0\.json", to_run)
    assert re.fullmatch(r"about \d+ s with 2 workers", total)


def test_a_stream_with_fewer_tasks_than_it_promises_is_refused(monkeypatch):
    monkeypatch.setitem(STREAMS, "split-digits", replace(STREAMS["split-digits"], tasks=7))
    told = "stream 'split-digits' has tasks=7, but its benchmark has 5 training and 5 test experiences"
    with pytest.raises(ValueError, match=told):
        run_cell(Cell("split-digits", "naive", 0), dataset_root=None, tb_dir=None)


def test_the_documents_example_of_a_stream_runs():
    text = (ROOT / "docs" / "protocol.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    made = {}
    exec(script, made)
    stream = made["stream"]
    benchmark = stream.build(0, None)
    assert len(benchmark.train_stream) == len(benchmark.test_stream) == stream.tasks
    image, *_ = benchmark.train_stream[0].dataset[0]
    assert stream.network()(image[None]).shape == (1, stream.classes)


def test_a_cell_that_is_named_twice_is_run_once_and_one_that_cannot_run_is_left_out(capsys):
    rows = ["--streams", "split-digits-class", "--methods", "naive,packnet, naive,", "--seeds", "1,0,1"]
    assert main(["run", *rows, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert [line.rsplit("/")[-1] for line in shown.out.splitlines()[:-1]] == ["seed1.json", "seed0.json"]
    assert "packnet on split-digits-class is left out: packnet needs task labels" in shown.err


def test_an_estimate_goes_by_tasks_and_epochs(tmp_path, monkeypatch):
    monkeypatch.setattr("leaderboard.forecast.COMMITTED", tmp_path / "none")
    whole = Cell("split-digits", "naive", 0, settings_of("split-digits", "naive"))
    measured = {key: 0 for key in _NEEDED} | {
        "stream": "split-digits", "method": "naive", "config": whole.config(), "train_seconds": 20, "eval_seconds": 10,
    }  # fmt: skip
    path = tmp_path / whole.path
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(measured))  # a run of 30 s with five tasks of six epochs
    half = [Cell("split-digits", row, 0, {}, epochs=3) for row in ("naive", "ewc")]
    other = [*half, Cell("permuted-digits", "naive", 0, {})]
    lines = forecast([whole, *other], out=tmp_path, workers=2).splitlines()
    assert [line[:20].strip() for line in lines[:4]] == ["done", *["to run  about 15 s"] * 2, "to run  no estimate"]
    assert lines[4] == "about 15 s with 2 workers, and 1 cells of a kind that was never measured"


def test_names_of_rows():
    assert parse_row("exssnet+kkt@0.05") == ("exssnet", {"kkt": "knn_best", "density": 0.05})
    assert parse_row("ewc") == ("ewc", {})


def test_a_method_of_somebody_else_joins_by_its_module(tmp_path, capsys):
    command = ["run", *SMALL, "--out", str(tmp_path), "--methods", "piggyback"]
    assert main(command) == 2
    assert "unknown method 'piggyback'" in capsys.readouterr().err
    # The command runs in another process, because a registration is permanent.
    script = [sys.executable, "-m", "leaderboard", *command, "--import", "examples.own_method"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "piggyback" in done.stdout
    result = json.loads((tmp_path / "split-digits" / "piggyback" / "seed0.json").read_text())
    assert "--import examples.own_method" in result["command"], "the command that is kept must run as it stands"
    assert main([*command, "--import", "no.such.module"]) == 2
    assert "no.such.module: No module named 'no'" in capsys.readouterr().err


GUEST = """
from avalanche.training.templates import SupervisedTemplate
from avalanche_supermask import SupSup
from benchmarks.lib.streams import STREAMS, build_stream
from dataclasses import replace

class Patient(SupervisedTemplate):
    pass

class Quick(SupSup):
    pass

mine = replace(STREAMS["split-digits"], epochs=1, tasks=2)
nothing = 7
"""


def test_a_strategy_class_and_a_stream_join_by_their_import_paths(tmp_path, monkeypatch):
    (tmp_path / "guests_of_mine.py").write_text(GUEST)
    common = ["--streams", "guests_of_mine:mine", "--seeds", "0", "--out", "out", "--workers", "1"]
    run = partial(subprocess.run, capture_output=True, text=True, check=False, cwd=tmp_path,
                  env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"})  # fmt: skip
    for name in ("Patient", "Quick"):
        done = run([sys.executable, "-m", "leaderboard", "add", f"guests_of_mine:{name}", *common])
        assert done.returncode == 0, done.stderr
    assert "patient" in done.stdout, "the board keeps who was there"
    assert "quick" in done.stdout
    result = json.loads((tmp_path / "out" / "guests_of_mine.mine" / "patient" / "seed0.json").read_text())
    assert (result["stream"], result["config"]["epochs"]) == ("guests_of_mine:mine", 1)
    assert "--import guests_of_mine:Patient" in result["command"]
    assert result["average_accuracy"] > 0.5


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["add", "no.such:Class"], "no.such:Class: No module named 'no'"),
        (["add", "json:Class"], "json:Class: module 'json' has no attribute 'Class'"),
        (["add", "json:dumps"], "json:dumps: expected a strategy class, got <function dumps"),
        (["add", "json"], "add takes module:Class; 'json' names no class"),
        (["run", "--streams", "json:dumps"], "expected a benchmarks.lib.streams.Stream, got function"),
        (["run", "--streams", "json:nothing"], "stream json:nothing: module 'json' has no attribute 'nothing'"),
        (["run", "--streams", "../mine.py:stream"], "stream '../mine.py:stream' is no import path; expected the form"),
        (["run", "--import", "../mine.py"], "'../mine.py' is no import path; expected the form package.module"),
        (["run", "--import", ".:A"], "'.:A' is no import path"),
        (["run", "--import", "json:"], "'json:' is no import path"),
    ],
)
def test_wrong_import_paths_get_one_line(arguments, complaint, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_cells_on_a_gpu_are_not_forked():
    assert _context("cpu").get_start_method() == "forkserver"
    assert _context("cuda:1").get_start_method() == "spawn"
