"""Avalanche's methods as plugins of ours: each works without forgetting, or is refused by name."""

from pathlib import Path

import pytest
import torch
from avalanche.training import plugins as avalanche_plugins
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.optim import SGD

from avalanche_supermask import CLNP, ExSSNeT, ImpressLearn, MaskedModel, SupSup, SupSupPlugin
from avalanche_supermask.companions import REFUSED
from benchmarks.faults.compatibility import COMPANIONS, companions
from tests.streams import class_stream, inputs, outputs

pytestmark = pytest.mark.filterwarnings("ignore:task .. no free unit is left", "ignore::DeprecationWarning")
ARGUMENTS = {
    "AGEMPlugin": {"patterns_per_experience": 8, "sample_size": 8},
    "BiCPlugin": {"mem_size": 20},
    "CoPEPlugin": {"mem_size": 20, "n_classes": 2, "p_size": 2},
    "CWRStarPlugin": {"model": nn.Linear(2, 2)},
    "EWCPlugin": {"ewc_lambda": 1.0},
    "FromScratchTrainingPlugin": {},
    "GEMPlugin": {"patterns_per_experience": 8, "memory_strength": 0.5},
    "GSS_greedyPlugin": {"mem_size": 20, "mem_strength": 2, "input_size": [1, 6, 6]},
    "LFLPlugin": {"lambda_e": 0.1},
    "MIRPlugin": {"batch_size_mem": 8, "mem_size": 20, "subsample": 20},
    "RARPlugin": {"batch_size_mem": 8, "mem_size": 20},
    "ReplayPlugin": {"mem_size": 20},
    "SynapticIntelligencePlugin": {"si_lambda": 0.1},
}
ONLINE = "EWCPlugin, online"
METHODS = {
    "supsup": (SupSup, {}),
    "exssnet": (ExSSNeT, {"weight_epochs": 1}),
    "clnp": (CLNP, {}),
    "impresslearn": (ImpressLearn, {"n_basis": 1}),
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU())
        self.classifier = nn.Linear(24, 2)

    def forward(self, x):
        return self.classifier(self.features(x))


class Normalised(Net):
    """A network with outputs of length 1 for CoPE, whose loss takes the exponential of the outputs."""

    def forward(self, x):
        return nn.functional.normalize(super().forward(x), dim=1)


def strategy_beside(name, method):
    cls, options = METHODS[method]
    made = getattr(avalanche_plugins, name.partition(",")[0])
    settings = {"ewc_lambda": 1.0, "mode": "online", "decay_factor": 0.9} if name == ONLINE else ARGUMENTS.get(name, {})
    net = Normalised() if name == "CoPEPlugin" else Net()
    return cls(
        net, optimizer=SGD(net.parameters(), lr=0.05), plugins=[made(**settings)], train_epochs=2, train_mb_size=16,
        evaluator=None, seed=0, **options,
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", COMPANIONS)
def test_it_works_beside_ours(name, method):
    strategy, recorded = strategy_beside(name, method), {}
    for experience in class_stream(3).train_stream:
        strategy.train(experience)
        recorded[experience.current_experience] = outputs(strategy.model, inputs(), experience.current_experience)
        for key, before in recorded.items():
            assert torch.equal(outputs(strategy.model, inputs(), key), before)
    assert strategy.model.task_keys == [0, 1, 2]


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name_before_anything_is_learned(name):
    with pytest.raises(ValueError, match=f"^{name} cannot run beside ExSSNeT: .*leave it out"):
        strategy_beside(name, "exssnet")


def test_a_template_of_ones_own_says_so_when_training_starts():
    net = MaskedModel(Net(), seed=0)
    plugins = [avalanche_plugins.SynapticIntelligencePlugin(si_lambda=0.1), SupSupPlugin()]
    template = SupervisedTemplate(
        model=net, optimizer=SGD(net.parameters(), lr=0.1), plugins=plugins, train_mb_size=16, evaluator=None
    )
    with pytest.raises(ValueError, match=r"^SynapticIntelligencePlugin cannot run beside SupSup: "):
        template.train(class_stream(1).train_stream[0])
    assert net.task_keys == []


def test_the_page_says_so():
    written = (Path(__file__).parent.parent / "docs/compatibility.md").read_text()
    assert "\n".join(companions()) in written
