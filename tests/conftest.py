import json
import platform
import warnings
from importlib import metadata
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

with warnings.catch_warnings():  # Warnings of Avalanche's own imports are not tested here.
    warnings.simplefilter("ignore")
    import avalanche.training  # noqa: F401


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def pytest_configure(config):
    # With xdist, the controller receives the outcome of every test; the workers must not write the file too.
    if config.getoption("--matrix") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Matrix(config.getoption("--matrix")))
    # Warnings are errors, except Avalanche's own, which are listed here.
    for line in (
        "error",
        "ignore:No loggers specified",
        "ignore:Deprecated:DeprecationWarning",
        "ignore:.*is deprecated and will be removed:DeprecationWarning",
        "ignore:.*update.*is deprecated",
        "ignore:__array_wrap__ must accept context:DeprecationWarning",
        "ignore:.*swigvarlink.*:DeprecationWarning",
        "ignore:.*SwigPy.*:DeprecationWarning",
    ):
        config.addinivalue_line("filterwarnings", line)


def pytest_addoption(parser):
    parser.addoption("--matrix", help="write what passed, test by test, and on which versions, to this JSON file")


class Matrix:
    """Write the outcome of every test to a file, for `python -m benchmarks.faults.compatibility`."""

    def __init__(self, path):
        self.path, self.outcomes = Path(path), {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.nodeid] = report.outcome

    def pytest_sessionfinish(self):
        packages = ("torch", "torchvision", "avalanche-lib", "numpy", "transformers")
        versions = {name: metadata.version(name) for name in packages}
        found = {"python": platform.python_version(), **versions, "tests": dict(sorted(self.outcomes.items()))}
        self.path.write_text(json.dumps(found, indent=1) + "\n")
