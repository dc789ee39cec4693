import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from avalanche_supermask import MaskedModel
from avalanche_supermask.strategies.kkt import choose_sources, features, knn_accuracy
from tests.building import learn_nothing
from tests.streams import NETWORKS, inputs


@pytest.mark.parametrize("k", [1, 5, 31, 10_000])
def test_knn_equals_scikit_learns(k):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (200,), generator=generator)
    x = torch.randn(200, 7, generator=generator) + labels.unsqueeze(1)
    split = int(0.66 * 200)
    oracle = KNeighborsClassifier(min(k, split // 3), algorithm="brute").fit(x[:split], labels[:split])
    assert knn_accuracy(x, labels, k=k) == pytest.approx(oracle.score(x[split:], labels[split:]))


def test_few_samples_still_tell_useful_features_from_noise():
    labels = torch.arange(60) % 3
    useful = torch.randn(60, 7, generator=torch.Generator().manual_seed(0)) + 5 * labels.unsqueeze(1)
    assert knn_accuracy(useful, labels) > 0.9, "the published 200 neighbours would all be of every class"
    assert knn_accuracy(torch.zeros(60, 7), labels) < 0.5


def test_too_few_samples_to_split():
    assert knn_accuracy(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long)) == 0.0


@pytest.mark.parametrize("network", NETWORKS)
def test_features_are_what_the_output_layer_sees(network):
    model = learn_nothing(MaskedModel(NETWORKS[network](), seed=0), 0)
    x = inputs(12)
    before = {k: v.clone() for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    model.train()
    found = features(model, 0, [x[:8], x[8:]])
    assert model.training
    assert found.shape[0] == 12
    weights = model.effective_weights(0)
    last = list(weights)[-1]
    bias = model.shared.get(last.replace("weight", "bias"), torch.zeros(()))
    model.eval()
    with torch.no_grad():
        assert torch.allclose(found @ weights[last].T + bias, model(x, 0), atol=1e-5)
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("rule", "chance", "expected"),
    [
        ("knn_best", 0.5, [1]),
        ("knn_best", 0.9, []),
        ("knn_always", 0.9, [1]),
        ("knn_all", 0.5, [1, 2]),
        ("knn_all", 0.9, []),
    ],
)
def test_which_tasks_are_sources(rule, chance, expected):
    assert choose_sources({0: 0.4, 1: 0.8, 2: 0.6}, rule=rule, chance=chance) == expected
    assert choose_sources({}, rule=rule, chance=chance) == []


def test_ties_go_to_the_task_learned_first():
    assert choose_sources({5: 0.7, 2: 0.7}, rule="knn_best", chance=0.5) == [5]


def test_the_network_may_be_a_single_layer():
    model = learn_nothing(MaskedModel(torch.nn.Linear(36, 2), seed=0), 0)
    assert features(model, 0, [torch.randn(4, 36)]).shape == (4, 36)
