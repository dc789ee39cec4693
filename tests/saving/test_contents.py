"""``python -m avalanche_supermask FILE`` prints the contents of a file."""

import subprocess
import sys

import pytest

from avalanche_supermask import ImpressLearn, SupSup, save
from avalanche_supermask.__main__ import main
from avalanche_supermask.saving.contents import contents
from tests.streams import class_stream, mlp, train_all


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "tasks.safetensors"
    strategy = SupSup(mlp(), density=0.25, train_epochs=1, train_mb_size=16, evaluator=None, seed=0)
    save(train_all(strategy, class_stream(2, task_labels=[3, 7])).model, path)
    return path, strategy.model


def test_the_table_has_the_models_own_numbers(saved):
    path, model = saved
    head, versions, _, columns, first, second = contents(path).splitlines()
    assert head == f"{path}: {path.stat().st_size:,} bytes, 2 tasks over 1,488 masked weights in 3 layers"
    assert "format 1" in versions
    assert columns.split() == ["task", "label", "mask", "bytes", "own", "bytes", "density", "overlap"]
    assert first.split()[:2] == ["3", "3"]
    assert first.split()[-2:] == ["0.250", "0.000"]
    assert float(second.split()[-1]) == pytest.approx(model.overlap()[7], abs=5e-4)


def test_a_mixture_has_no_mask(tmp_path):
    strategy = ImpressLearn(mlp(), n_basis=1, train_epochs=1, train_mb_size=16, evaluator=None, seed=0)
    save(train_all(strategy, class_stream(2)).model, tmp_path / "mixed")
    assert "mixture" in contents(tmp_path / "mixed").splitlines()[-1]


def test_the_command(saved, tmp_path, capsys):
    done = subprocess.run(
        [sys.executable, "-m", "avalanche_supermask", str(saved[0])], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.strip() == contents(saved[0])
    assert main([str(tmp_path / "nothing")]) == 2
    assert "No such file" in capsys.readouterr().err
    (tmp_path / "other").write_text("no tensors")
    assert main([str(tmp_path / "other")]) == 2
    assert "is damaged, or no file of save()" in capsys.readouterr().err
