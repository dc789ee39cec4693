"""Every example runs from the command line and prints the expected text."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from avalanche_supermask import registry

# The examples evaluate the whole stream after every task, so one warning reports tasks that were not trained yet.
pytestmark = pytest.mark.filterwarnings("ignore:task label .* was never trained")
EXAMPLES = Path(__file__).parents[1] / "examples"
SAYS = {
    "first_steps": r"largest change of any old output: 0\.0$",
    "own_model": r"MyNet of task 0 answers like the masked model: True",
    "compare_with_ewc": r"EWC +average 0\.\d+.*\nExSSNeT +average 0\.\d+",
    "tensorboard_curves": r"tensorboard --logdir",
    "unknown_task_ids": r"one-shot, G +accuracy 0\.\d+, right task",
    "fast_adaptation": r"bytes of its coefficients: 48",
    "transformer": r"accuracy of each task: 0\.\d+",
    "several_processes": r"1 process\(es\) learned \[0, 1, 2, 3, 4\]",
    "resume_after_crash": r"tasks learned now: \[0, 1, 2, 3, 4\]",
    "pretrained_images": r"the loaded task answers alike: True",
    "pretrained_texts": r"\d+ more tasks fit beside the \d+ bytes of weights",
    "save_and_export": r"answers like task 2: True",
}


METHODS = {"own_method": "piggyback", "wsn": "wsn", "packnet": "packnet-norm", "hat": "hat"}  # each method in one file


def run(name, *arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.syspath_prepend(EXAMPLES)  # Python does the same for a script.
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def test_an_example_runs_from_anywhere(tmp_path):
    """The checkout is not on the path here, and Avalanche installs a top-level package named examples."""
    command = [sys.executable, str(EXAMPLES / "first_steps.py"), "--epochs", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "largest change of any old output: 0.0" in done.stdout


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SAYS, *METHODS, "digits", "__init__"}


@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(name, "--epochs", "2", monkeypatch=monkeypatch)
    assert re.search(SAYS[name], capsys.readouterr().out, flags=re.MULTILINE)


@pytest.mark.parametrize("name", SAYS)
def test_an_example_has_help(name, monkeypatch, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        run(name, "--help", monkeypatch=monkeypatch)
    assert "--epochs" in capsys.readouterr().out


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("resume_after_crash", "--epochs", "1", "--stop-after", "2", monkeypatch=monkeypatch)
    run("resume_after_crash", "--epochs", "1", monkeypatch=monkeypatch)
    assert "tasks learned before: [0, 1]\ntasks learned now: [0, 1, 2, 3, 4]" in capsys.readouterr().out


@pytest.mark.parametrize("module", METHODS)
def test_a_method_of_ones_own_runs(module, monkeypatch, capsys):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))  # The method registers itself.
    run(module, "--epochs", "2", monkeypatch=monkeypatch)
    assert "accuracy of each task: " in capsys.readouterr().out


@pytest.mark.parametrize(("module", "method"), METHODS.items())
def test_a_method_of_ones_own_passes_the_contract_tests(module, method):
    """The test runs in another process, because the method registers itself for all tests of its process."""
    chosen = ["-p", f"examples.{module}", "-k", f"{method} and (mlp or lenet)"]
    contract = ["-m", "pytest", "-q", *chosen, "tests/test_contract.py"]
    done = subprocess.run([sys.executable, *contract], cwd=EXAMPLES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    passed = done.stdout.splitlines()[0].partition("[")[0].strip()
    assert passed.count(".") >= 9, done.stdout[-3000:]
    assert set(passed) <= set(".s")


def test_methods_of_ones_own_get_rows_of_the_leaderboard(tmp_path):
    imports = ["--import", ",".join(f"examples.{module}" for module in METHODS)]
    command = [
        "run",
        "--streams",
        "split-digits",
        "--methods",
        ",".join(METHODS.values()),
        "--epochs",
        "1",
        "--seeds",
        "0",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "leaderboard", *command, *imports, "--out", str(tmp_path)],
        cwd=EXAMPLES.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("split-digits/*/seed0.json")}
    assert found.keys() == set(METHODS.values())
    assert all(result["output_drift"] == 0.0 for result in found.values())


def test_the_notebook_runs_and_shows_four_pictures(tmp_path):
    """The notebook runs in another process, because warnings of Jupyter must not fail the test."""
    notebook = EXAMPLES / "tour.ipynb"
    script = f"""
import nbformat
from nbclient import NotebookClient
book = nbformat.read({str(notebook)!r}, 4)
opened_in = {{"metadata": {{"path": {str(EXAMPLES)!r}}}}}
NotebookClient(book, timeout=300, kernel_name="python3", resources=opened_in).execute()
outputs = [out for cell in book.cells for out in cell.get("outputs", [])]
print(sum("image/png" in out.get("data", {{}}) for out in outputs), "pictures")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "4 pictures" in done.stdout, done.stderr[-3000:]
    shown = json.loads(notebook.read_text())["cells"]
    assert sum("image/png" in out.get("data", {}) for cell in shown for out in cell.get("outputs", [])) == 4
