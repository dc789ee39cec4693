import pytest

from avalanche_supermask import SubnetworkStrategy, methods, register
from avalanche_supermask.strategies.supsup import SupSup


def test_methods_are_known_by_name():
    assert {"supsup", "exssnet", "ssnet"} <= methods().keys()
    assert all(issubclass(method, SubnetworkStrategy) for method in methods().values())


def test_a_name_is_taken_once():
    assert register("supsup")(SupSup) is SupSup
    with pytest.raises(ValueError, match="the name 'supsup' is taken"):
        register("supsup")(object)
