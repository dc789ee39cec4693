"""With every method, several processes end each task with the same bits, and old tasks do not change."""

import pytest

from tests.distributed.learning import OPTIONS, learn
from tests.distributed.processes import group_of
from tests.streams import NETWORKS

REFUSED = [("clnp", "transformer"), ("clnp", "lstm")]  # CLNP refuses these networks.
PAIRS = [
    (name, network) for name in OPTIONS for network in NETWORKS if (name.partition("+")[0], network) not in REFUSED
]
FAST = [("supsup", "resnet"), ("exssnet+kkt", "mlp"), ("clnp", "resnet"), ("impresslearn", "lenet")]


def agree(found, forgets):
    first = found[0]
    for other in found[1:]:
        assert other["digests"] == first["digests"]
        assert other["metrics"] == first["metrics"]
        assert other["entropies"] == first["entropies"]
    assert first["keys"] == [0, 1, 2]
    assert len(set(first["digests"])) == 3
    assert all(entropy is not None for entropy in first["entropies"])
    if forgets:
        assert max(first["drift"]) > 1e-4, "a control that cannot fail shows nothing"
    else:
        assert first["drift"] == [0.0] * 3


@pytest.mark.parametrize(("name", "network"), FAST)
def test_two_processes_hold_the_same_bits(name, network):
    agree(group_of(2).run(learn, name, network), forgets=False)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(("name", "network"), PAIRS)
def test_every_method_and_network(name, network, size):
    agree(group_of(size).run(learn, name, network), forgets=name == "ssnet")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["supsup", "exssnet", "clnp", "impresslearn"])
def test_with_avalanches_own_loader(name):
    agree(group_of(2).run(learn, name, "resnet", {"plugins": []}), forgets=False)
