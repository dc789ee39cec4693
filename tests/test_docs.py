"""What the documents say is run: the README's script, its commands' names, and every docstring example."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import avalanche_supermask
import leaderboard
from avalanche_supermask import save_checkpoint
from tests.streams import class_stream

ROOT = Path(__file__).parent.parent
MODULES = [
    module.name
    for package in (avalanche_supermask, leaderboard)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore:No loggers")
def test_docstring_examples(name):
    module = importlib.import_module(name)
    globs = {"torch": torch, "nn": torch.nn, **vars(module)}
    failed, _ = doctest.testmod(module, extraglobs=globs, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def code_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


@pytest.mark.filterwarnings("ignore:No loggers", "ignore:task label", "ignore:Cannot properly serialize the file")
def test_the_readmes_script_runs(monkeypatch, capsys, tmp_path):
    classic = importlib.import_module("avalanche.benchmarks.classic")

    def stand_in(n_experiences, **arguments):
        assert arguments == {"return_task_id": True, "class_ids_from_zero_in_each_exp": True, "seed": 0}
        return class_stream(n_experiences)

    monkeypatch.setattr(classic, "SplitMNIST", stand_in)
    script, questions, resuming = code_blocks(ROOT / "README.md")
    namespace = {}
    exec(script.replace("784", "36"), namespace)  # the stand-in's images are 6x6
    strategy = namespace["strategy"]
    assert strategy.model.task_keys == [0, 1, 2, 3, 4]
    assert "{0: " in capsys.readouterr().out
    exec(questions, namespace)
    assert strategy.model.task_keys == [1, 2, 3, 4]
    monkeypatch.chdir(tmp_path)
    strategy.train(namespace["stream"].train_stream[0])
    save_checkpoint(strategy, "run.pkl")
    namespace["stream"] = class_stream(strategy.clock.train_exp_counter)
    exec(resuming, namespace)
    assert namespace["first"] == strategy.clock.train_exp_counter == 6


def test_the_bytes_in_the_readme_are_right():
    model = avalanche_supermask.MaskedModel(
        torch.nn.Sequential(torch.nn.Linear(784, 300), torch.nn.Linear(300, 100), torch.nn.Linear(100, 2))
    )
    assert model.subnetworks.masks.row_bytes == 33_175
    assert sum(w.numel() for w in model.subnetworks.frozen.values()) == 265_400


def test_the_readmes_commands_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert named <= targets
    assert {"leaderboard", "test"} <= named


def test_the_public_names_resolve():
    for name in avalanche_supermask.__all__:
        assert not isinstance(getattr(avalanche_supermask, name), types.ModuleType), name
    with pytest.raises(AttributeError, match="no attribute 'Supsup'"):
        _ = avalanche_supermask.Supsup


def test_the_pages_build_without_a_warning(tmp_path):
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    reference = (tmp_path / "reference.html").read_text()
    assert "bytes_per_task" in reference
    methods = {path.stem: path.read_text() for path in (tmp_path / "methods").glob("*.html")}
    assert all("Parameters" in page for name, page in methods.items() if name != "unknown_tasks"), methods.keys()


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_code_in_the_documents_is_python(path):
    for block in code_blocks(path):
        compile(block, str(path), "exec")
