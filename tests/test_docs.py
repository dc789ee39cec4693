"""The code in the documents works: the README's script, its commands, and every docstring example."""

import doctest
import importlib
import importlib.util
import pkgutil
import re
import subprocess
import sys
import types
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from sphinx.util.inventory import InventoryFile

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
    # Another processor may add numbers in another order.
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


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site; return its pages and its folder."""
    out = tmp_path_factory.mktemp("site") / "html"
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(out)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {str(path.relative_to(out)): path.read_text() for path in out.rglob("*.html")}, out


def test_the_reference_has_every_public_name(site):
    pages, out = site
    inventory = InventoryFile.loads((out / "objects.inv").read_bytes(), uri="")
    described = {name for kind in inventory.data.values() for name in kind}
    names = {f"avalanche_supermask.{name}" for name in avalanche_supermask.__all__ if name != "__version__"}
    modules = ["metrics", "plots", "selection", "inference", "text"]
    names |= {
        f"avalanche_supermask.{module}.{name}"
        for module in modules
        for name in importlib.import_module(f"avalanche_supermask.{module}").__all__
        if name not in ("by_name", "entropy")  # These are for the package itself, like the names of types.
        and isinstance(getattr(sys.modules[f"avalanche_supermask.{module}"], name), (type, types.FunctionType))
    }
    at_the_top = {f"avalanche_supermask.{name.rpartition('.')[2]}" for name in described}
    missing = {name for name in names - described if f"avalanche_supermask.{name.rpartition('.')[2]}" not in at_the_top}
    assert not missing, "add them to docs/reference"
    assert "bytes_per_task" in pages["reference/models.html"]


def test_no_page_shows_what_is_not_for_readers(site):
    pages, _ = site
    methods = [page for name, page in pages.items() if name.startswith("methods/") and "unknown" not in name]
    assert all("Parameters" in page for page in methods)
    assert len(methods) == 4
    for name, page in pages.items():
        text = re.sub(r"<[^>]+>", "", page)
        assert "fmt: skip" not in text, name
        assert "_Unset" not in text, name
        assert " object at 0x" not in text, name
        assert not re.search(r"see \w+Plugin\b", text), f"{name}: a parameter is not described"


def test_every_link_within_the_site_leads_somewhere(site):
    pages, out = site
    assert "leaderboard_table.html" in pages["leaderboard.html"]
    for name, page in pages.items():
        if name != "leaderboard_table.html":
            for target in re.findall(r'(?:href|src)="([^"#?]+)', page):
                if not target.startswith(("http:", "https:", "data:", "mailto:")):
                    assert (out / name).parent.joinpath(unquote(target)).exists(), f"{name} links to {target}"


def test_the_gallery_shows_every_example():
    page, shown = (ROOT / "docs/gallery.md").read_text(), ROOT / "docs/gallery"
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"digits", "__init__"}
    assert set(re.findall(r"literalinclude} \.\./examples/(\w+)\.py", page)) == scripts
    assert set(re.findall(r"literalinclude} gallery/(\w+)\.txt", page)) == scripts
    assert {path.stem for path in shown.glob("*.txt")} == scripts, "run python docs/draw_gallery.py"
    assert set(re.findall(r"\(gallery/(\w+\.png)\)", page)) == {path.name for path in shown.glob("*.png")}


def test_which_method_agrees_with_the_leaderboard():
    tables = (ROOT / "leaderboard/results/LEADERBOARD.md").read_text().split("\n## ")
    given = {table.split("\n")[0]: table.split("### scenario: task id unknown")[0] for table in tables}
    page = (ROOT / "docs/which_method.md").read_text()
    rows = re.findall(r"^\| ([\w-]+) \| (0\.\d+) \| (0\.\d+) \| (\w+) \|$", page, re.MULTILINE)
    assert len(rows) == 8
    for stream, *numbers, ahead in rows:
        found = [
            max(float(a) for a in re.findall(rf"^\| {method}(?:@[\d.]+)? \| (0\.\d+)", given[stream], re.MULTILINE))
            for method in ("supsup", "exssnet")
        ]
        assert [float(n) for n in numbers] == pytest.approx(found, abs=0.0006), stream
        difference = found[1] - found[0]
        assert ahead == ("level" if abs(difference) < 0.0025 else "ExSSNeT" if difference > 0 else "SupSup"), stream


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
