"""Networks whose parameters are frozen before wrapping, wholly or in part."""

import copy

import pytest
import torch
from avalanche.models import MultiHeadClassifier, MultiTaskModule
from torch import nn
from torch.optim import AdamW

from avalanche_supermask import CLNP, ExSSNeT, ImpressLearn, MaskedModel, SupSup, load, save
from tests.streams import class_stream, inputs, mlp, outputs, train_all

QUICK = {"train_epochs": 2, "train_mb_size": 16, "evaluator": None, "seed": 0}
METHODS = {
    "supsup": (SupSup, {}),
    "exssnet": (ExSSNeT, {"weight_epochs": 1}),
    "kept": (ExSSNeT, {"init": "keep", "per_task": "all"}),
    "impresslearn": (ImpressLearn, {"n_basis": 2}),
    "clnp": (CLNP, {}),
}
SAID = r"2 parameters of Sequential are frozen \(requires_grad=False\) and stay.*pass frozen='mask'"


def frozen_below():
    net = mlp()
    net[1].requires_grad_(False)
    return net


@pytest.mark.filterwarnings("ignore:task .. no free unit is left")
@pytest.mark.parametrize("method", METHODS)
def test_what_is_frozen_stays_as_it_is_in_every_task(method):
    cls, options = METHODS[method]
    net = frozen_below()
    before = copy.deepcopy(net[1].state_dict())
    rest = [p for p in net.parameters() if p.requires_grad]
    optimizer = AdamW([{"params": rest[:2], "lr": 0.01}, {"params": rest[2:], "lr": 0.1}], weight_decay=0.1)
    with pytest.warns(UserWarning, match=SAID) as said:
        strategy = cls(net, optimizer=optimizer, **QUICK, **options)
    assert sum("frozen" in str(warning.message) for warning in said) == 1
    recorded = {}
    for experience in class_stream(8).train_stream:
        strategy.train(experience)
        recorded[experience.current_experience] = outputs(strategy.model, inputs(), experience.current_experience)
        for key, out in recorded.items():
            assert torch.equal(outputs(strategy.model, inputs(), key), out)
    for key in strategy.model.task_keys:
        exported = strategy.model.export(key)
        assert all(torch.equal(t, before[name]) for name, t in exported[1].state_dict().items())
        assert [p.requires_grad for p in exported.parameters()] == [p.requires_grad for p in net.parameters()]
    assert [len(group["params"]) > 0 for group in optimizer.param_groups] == [True, True]
    assert "1.weight" not in strategy.model.masked_names


@pytest.mark.parametrize("method", ["supsup", "exssnet", "impresslearn", "clnp"])
def test_an_option_masks_what_is_frozen_too(method):
    cls, options = METHODS[method]
    strategy = cls(mlp().requires_grad_(False), frozen="mask", **QUICK, **options)
    x, recorded = inputs(), []
    for experience in class_stream(2).train_stream:
        strategy.train(experience)
        recorded.append(outputs(strategy.model, x, 0))
    assert "1.weight" in strategy.model.masked_names
    assert torch.equal(*recorded)


@pytest.mark.parametrize("method", METHODS)
def test_a_wholly_frozen_network_is_told_of_the_option(method):
    cls, options = METHODS[method]
    with pytest.raises(ValueError, match=r"every weight of Sequential.*is frozen.*pass frozen='mask' to mask them too"):
        cls(mlp().requires_grad_(False), **{**options, "evaluator": None})


def test_a_frozen_head_of_a_multi_head_network_stays():
    class Net(MultiTaskModule):
        def __init__(self):
            super().__init__()
            self.features, self.classifier = nn.Linear(36, 8), MultiHeadClassifier(8, 2)
            self.features.bias.requires_grad_(False)

        def forward(self, x, task_labels):
            return self.classifier(self.features(x.flatten(1)).relu(), task_labels)

    with pytest.warns(UserWarning, match="1 parameters of Net are frozen"):
        strategy = SupSup(Net(), **QUICK)
    train_all(strategy, class_stream(3))
    bias = strategy.model.shared["features.bias"]
    assert bias.any(), "it was brought, and is not zeroed"
    assert strategy.model.task_keys == [0, 1, 2]


def test_what_own_names_is_learned_although_it_is_frozen():
    with pytest.warns(UserWarning, match="1 parameters"):
        model = MaskedModel(frozen_below(), own=[r"1\.weight"])
    assert model.frozen_names == {"1.bias"}


def test_an_unknown_option():
    with pytest.raises(ValueError, match="frozen must be 'keep' or 'mask'; got 'train'"):
        MaskedModel(mlp(), frozen="train")


def test_a_file_knows_what_was_frozen(tmp_path):
    with pytest.warns(UserWarning, match="are frozen"):
        strategy = train_all(SupSup(frozen_below(), **QUICK), class_stream(2))
    save(strategy.model, tmp_path / "model.safetensors")
    for net in (mlp(), frozen_below(), mlp().requires_grad_(False)):
        loaded = load(tmp_path / "model.safetensors", net)
        assert torch.equal(outputs(loaded, inputs(), 1), outputs(strategy.model, inputs(), 1))
        assert loaded.frozen_names == strategy.model.frozen_names
    masked = train_all(SupSup(mlp().requires_grad_(False), frozen="mask", **QUICK), class_stream(1))
    save(masked.model, tmp_path / "masked.safetensors")
    assert load(tmp_path / "masked.safetensors", mlp().requires_grad_(False)).masked_names == masked.model.masked_names
