"""What the documents say is run: the README's script, its commands' names, and every docstring example."""

import doctest
import importlib
import importlib.util
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


def test_the_readmes_script_prints_what_the_readme_shows(capsys):
    (script,) = code_blocks(ROOT / "README.md")
    (shown,) = re.findall(r"```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(script, {})
    number = re.compile(r"[0-9.]+")
    printed = capsys.readouterr().out
    assert number.sub("N", printed) == number.sub("N", shown)
    found, expected = (re.findall(r"accuracy ([0-9.]+)", text) for text in (printed, shown))
    # Another processor may add in another order.
    assert [float(a) for a in found] == pytest.approx([float(a) for a in expected], abs=0.03)
    assert re.findall(r", (\d+) bytes", printed) == re.findall(r", (\d+) bytes", shown)


def test_the_readme_is_one_screen():
    assert len((ROOT / "README.md").read_bytes()) < 7_000


def test_the_picture_of_the_architecture_shows_the_imports_of_today():
    script = importlib.util.spec_from_file_location("draw_architecture", ROOT / "docs/draw_architecture.py")
    module = importlib.util.module_from_spec(script)
    script.loader.exec_module(module)
    described = module.described(module.arrows())
    picture = (ROOT / "docs/architecture.svg").read_text()
    assert described in picture, "run python docs/draw_architecture.py"


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
