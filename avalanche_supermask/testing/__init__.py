"""The contract of a method as a function that any package can call: `check_method`.

The function corresponds to scikit-learn's ``check_estimator``: a method that passes all checks keeps the guarantees of
this package. Every check trains on small synthetic data. The checks need no download, no seed from the caller and no
test runner.

    from avalanche_supermask.testing import check_method
    check_method(MyMethod, density=0.2)

With pytest, each check can be a separate test:

    @pytest.mark.parametrize(("name", "check"), contract(MyMethod))
    def test_my_method(name, check):
        check()
"""

from avalanche_supermask.testing.checks import check_method, contract
from avalanche_supermask.testing.problems import NETWORKS, OPTIMIZERS, small_stream

__all__ = ["NETWORKS", "OPTIMIZERS", "check_method", "contract", "small_stream"]
