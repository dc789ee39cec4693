"""The wheel holds only the package, and the package works in an empty environment."""

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMOKE = """
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche_supermask import ExSSNeT, load, save
from torch import nn
data = [(torch.rand(32, 8), torch.arange(32) % 2) for _ in range(2)]
stream = tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=[0, 1])
net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
strategy = ExSSNeT(net, train_epochs=2, train_mb_size=8, evaluator=None)
for experience in stream.train_stream:
    strategy.train(experience)
save(strategy.model, "model.safetensors")
x = torch.rand(4, 8)
assert torch.equal(load("model.safetensors", net).eval()(x, 1), strategy.model.eval()(x, 1))
print("trained", strategy.model.task_keys)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build the wheel and the source distribution with the build system of pyproject.toml."""
    hatchling = pytest.importorskip("hatchling.build")
    assert hatchling
    out = tmp_path_factory.mktemp("dist")
    script = f"from hatchling.build import *; print(build_wheel({str(out)!r}), build_sdist({str(out)!r}))"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True)
    return out


def test_the_wheel_holds_the_package_alone(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"avalanche_supermask"}
    assert "avalanche_supermask/py.typed" in names
    assert "avalanche_supermask/text/streams.py" in names
    for extra in ("text", "graph", "gpu", "ray", "docs", "dev"):
        assert f"Provides-Extra: {extra}" in metadata


def test_the_source_holds_tests_and_licence(built):
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "tests/test_contract.py",
        "avalanche_supermask/model/masked_model.py",
    } <= names
    assert not {name for name in names if name.startswith(("leaderboard/results", ".venv"))}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_it_trains_in_an_empty_environment(built, kind, tmp_path):
    """The test installs all packages from the registry, which takes minutes and gigabytes."""
    (package,) = built.glob(kind)
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(package)], check=True)
    done = subprocess.run([python, "-c", SMOKE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "trained [0, 1]" in done.stdout, done.stderr[-2000:]
