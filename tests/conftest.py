import warnings

import pytest
import torch

torch.set_num_threads(1)

with warnings.catch_warnings():  # what Avalanche's own imports say is not ours to mend
    warnings.simplefilter("ignore")
    import avalanche.training  # noqa: F401


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def pytest_configure(config):
    # Warnings are errors, Avalanche's own excepted by name.
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
