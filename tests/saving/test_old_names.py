"""Checkpoints of version 0.1.0, written before modules were moved, load with the same outputs."""

import io
from pathlib import Path

import dill
import pytest
import torch
from torch import nn

import avalanche_supermask
from avalanche_supermask import CachedTensors, maybe_load_checkpoint
from avalanche_supermask.saving.old_names import _CLASSES, old_names

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", ["SupSup", "ExSSNeT", "CLNP", "ImpressLearn"])
def test_a_checkpoint_of_0_1_0_gives_the_answers_that_it_gave_then(name):
    strategy_class = getattr(avalanche_supermask, name)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    strategy = strategy_class(net, train_epochs=2, train_mb_size=20, seed=0, plugins=[CachedTensors()])
    strategy, following = maybe_load_checkpoint(strategy, HERE / f"checkpoint_0.1.0_{name}.pkl")
    answers = torch.load(HERE / f"checkpoint_0.1.0_{name}_answers.pt")
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(9))
    strategy.model.eval()
    assert following == 2
    with torch.no_grad():
        for key, expected in answers.items():
            assert torch.equal(strategy.model(x, key), expected)
        strategy.model.execution = "auto"
        for key, expected in answers.items():
            torch.testing.assert_close(strategy.model(x, key), expected)
    assert len(strategy.model.state_dict()["subnetworks._extra_state"]["choices"]) == len(answers)


@pytest.mark.parametrize(("earlier", "present"), _CLASSES.items())
def test_a_class_that_left_its_module_is_found_under_its_earlier_name(earlier, present):
    module, name = earlier
    with old_names():
        found = dill.Unpickler(io.BytesIO()).find_class(f"avalanche_supermask.{module}", name)
    assert (found.__module__, found.__name__) == (f"avalanche_supermask.{present[0]}", present[1])
