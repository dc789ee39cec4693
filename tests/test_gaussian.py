import copy

import pytest
import torch
from torch import nn

from avalanche_supermask import CLNP, ExSSNeT, ImpressLearn, MaskedModel, SupSup, load, save
from avalanche_supermask.inference import Gaussian, by_name
from avalanche_supermask.inference.gathering import gather_statistics
from tests.streams import class_stream, lenet, mlp, train_all


def strategy(kind=SupSup, net=None, way="gaussian", **settings):
    return kind(
        net or mlp(), train_epochs=2, train_mb_size=16, evaluator=None, seed=0, task_inference=way, **settings
    )


def right(model, stream):
    """Share of the test samples whose task is found."""
    model.eval()
    found = []
    for experience in stream.test_stream:
        x = torch.stack([sample[0] for sample in experience.dataset])
        model(x)
        found.append((model.inferred_task == experience.current_experience).float())
    return float(torch.cat(found).mean())


@pytest.mark.parametrize("kind", [SupSup, ExSSNeT, CLNP, ImpressLearn])
def test_every_method_finds_the_task_of_separable_samples(kind):
    stream = class_stream(3)
    settings = {"n_basis": 2} if kind is ImpressLearn else {}
    trained = train_all(strategy(kind, way=Gaussian(rank=2), **settings), stream)
    assert right(trained.model, stream) > 0.95
    trained.model.task_inference = Gaussian(rank=2, per="batch")
    assert right(trained.model, stream) == 1.0


@pytest.mark.parametrize("settings", [{}, {"covariance": "task"}, {"shared": True}, {"layers": ("1", "5"), "rank": (3, 4)}])
def test_settings_find_tasks_too(settings):
    stream = class_stream(3)
    assert right(train_all(strategy(way=Gaussian(**{"rank": 3, **settings})), stream).model, stream) > 0.8
