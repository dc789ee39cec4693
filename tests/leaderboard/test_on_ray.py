"""The Ray engine with two workers has the pool's numbers, logs and failures, and repeats a cell that died."""

import json
import sys

import pytest

from leaderboard.__main__ import main
from leaderboard.cell import Cell, settings_of
from leaderboard.pool import is_done, run_cells

ray = pytest.importorskip("ray")
from leaderboard.on_ray import run_cells_on_ray  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray does not close its sockets and files.
    pytest.mark.filterwarnings("ignore:.*unclosed:pytest.PytestUnraisableExceptionWarning"),
]

# A module that kills its process at the first import, as if the machine failed.
DIES_ONCE = """
import os, pathlib
marker = pathlib.Path({marker!r})
if not marker.exists():
    marker.touch()
    os._exit(1)
"""


def cell(method, **changed):
    return Cell("split-digits", method, 0, settings_of("split-digits", method) | changed, epochs=1, tasks=2)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Start two workers that can import modules from ``tmp_path``."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_it_gives_what_the_pool_gives(cluster, tmp_path):
    cells = [cell("naive"), cell("exssnet"), cell("supsup", density=7.0)]
    failed = run_cells_on_ray(cells, out=tmp_path / "ray", workers=2)
    assert list(failed) == [str(cells[2].path)]
    assert "density must be a fraction in (0, 1]" in failed[str(cells[2].path)]
    run_cells(cells[:2], out=tmp_path / "pool", workers=2, quiet=True)
    for done in cells[:2]:
        ours, theirs = (json.loads((tmp_path / engine / done.path).read_text()) for engine in ("ray", "pool"))
        assert ours["accuracy_matrix"] == theirs["accuracy_matrix"]
        assert ours.keys() == theirs.keys()
        assert ours["commit"] == theirs["commit"]
        assert list((tmp_path / "ray" / "tb" / done.path.with_suffix("")).glob("events.*"))
    assert not is_done(cells[2], tmp_path / "ray")
    assert run_cells_on_ray(cells[:2], out=tmp_path / "ray", workers=2) == {}, "what is done is not run again"


def test_a_cell_whose_process_died_is_tried_again(cluster, tmp_path):
    (tmp_path / "dies_once.py").write_text(DIES_ONCE.format(marker=str(tmp_path / "died")))
    (tmp_path / "dies_always.py").write_text("import os; os._exit(1)")
    options = {"workers": 2, "quiet": True, "retries": 1}
    assert run_cells_on_ray([cell("naive")], out=tmp_path, modules=["dies_once"], **options) == {}
    assert (tmp_path / "died").exists()
    assert is_done(cell("naive"), tmp_path)
    failed = run_cells_on_ray([cell("supsup")], out=tmp_path, modules=["dies_always"], **options)
    assert failed[str(cell("supsup").path)].startswith("after 2 tries: ")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--address", "localhost:6379"], "--address localhost:6379 is of a Ray cluster: add --engine ray"),
        (["--engine", "ray", "--address", "127.0.0.1:1"], "no Ray cluster at 127.0.0.1:1: "),
        (["--engine", "ray", "--address", "here:there"], "no Ray cluster at here:there: "),
    ],
)
def test_wrong_arguments_get_one_line(arguments, complaint, capsys, tmp_path):
    assert main(["run", "--methods", "naive", "--out", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_without_ray_it_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "leaderboard.on_ray", None)
    assert main(["run", "--methods", "naive", "--out", str(tmp_path), "--engine", "ray"]) == 2
    assert "pip install -e '.[ray]'" in capsys.readouterr().err
