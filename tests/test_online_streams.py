"""A task that comes in several portions: its training continues, and earlier tasks do not change."""

import itertools

import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.training.plugins import GDumbPlugin
from torch import nn

from avalanche_supermask import ExSSNeT, SupSup, SupSupPlugin, methods
from tests.streams import class_stream, inputs, mlp, outputs

QUICK = {"train_mb_size": 8, "evaluator": None, "seed": 0, "density": 0.3, "train_epochs": 2}
CONTINUE = {**QUICK, "on_revisit": "continue"}


def online(n_tasks=2, **options):
    return split_online_stream(class_stream(n_tasks).train_stream, experience_size=16, seed=0, **options)


@pytest.mark.parametrize(("method", "options"), [(SupSup, {}), (SupSup, {"density": None}), (ExSSNeT, {})])
def test_a_task_goes_on_while_its_label_comes_again_and_nothing_earlier_moves(method, options):
    strategy, x = method(mlp(), **{**CONTINUE, **options}), inputs()
    masks, before, moved = [], None, 0.0
    for experience in online(2):
        strategy.train(experience)
        keys = strategy.model.task_keys
        masks.append({n: m.clone() for n, m in strategy.model.subnetworks.task_mask(keys[-1]).items()})
        if keys == [0, 1]:
            now = outputs(strategy.model, x, 0)
            moved = max(moved, 0.0 if before is None else float((now - before).abs().max()))
            before = now
    assert strategy.model.task_keys == [0, 1]
    assert len(masks) == 6
    assert moved == 0.0
    changed = [sum(int((a[n] != b[n]).sum()) for n in a) for a, b in itertools.pairwise(masks)]
    kept = sum(int(m.sum()) for m in masks[0].values())
    assert 0 < changed[0] < kept / 2, "it goes on from the mask that it had"


def test_without_a_step_or_after_an_error_the_task_is_what_it_was():
    strategy, x = SupSup(mlp(), **CONTINUE), inputs()
    experience = class_stream(1).train_stream[0]
    strategy.train(experience)
    before = outputs(strategy.model, x, 0)
    strategy.model.resume()
    strategy.model.abandon()
    assert strategy.model.task_keys == [0]
    assert torch.equal(outputs(strategy.model, x, 0), before)


def test_scores_that_are_lost_are_made_of_the_mask():
    strategy = SupSup(mlp(), **CONTINUE)
    strategy.train(class_stream(1).train_stream[0])
    model = strategy.model
    mask = model.subnetworks.task_mask(0)
    model.set_scores(model.fresh_scores(7))
    plugin = SupSupPlugin(density=0.3)
    plugin.continue_task(strategy, model, model.resume())
    plugin.enter_phase(plugin.phases(1)[0], model)
    for name, m in model.current_mask().items():
        assert torch.equal(m, mask[name])


def test_a_task_that_is_finished_does_not_go_on():
    strategy, stream = SupSup(mlp(), **CONTINUE), class_stream(2).train_stream
    strategy.train(stream)
    with pytest.raises(ValueError, match=r"task 0 is finished, as task 1 has begun since.*the latest task only"):
        strategy.train(stream[0])


@pytest.mark.parametrize("method", [m for m in methods() if m not in ("supsup", "exssnet", "ssnet")])
def test_methods_that_cannot_go_on_say_so(method):
    with pytest.raises(ValueError, match="on_revisit='continue' is for SupSup, ExSSNeT and SSNeT"):
        methods()[method](mlp(), evaluator=None, on_revisit="continue")


def test_evaluation_by_an_index_that_was_learned_under_another_label_warns_once():
    strategy = SupSup(mlp(), task_key="experience", **QUICK)
    strategy.train(online(2))
    assert [task.label for task in strategy.model.subnetworks.tasks.values()] == [0, 0, 0, 1, 1, 1]
    test = class_stream(2).test_stream
    strategy.eval(test[0])
    with pytest.warns(UserWarning, match="has the index 1 and the task label 1, but task 1 was learned under the lab"):
        strategy.eval(test)
    strategy.eval(test)  # Another warning would be an error.


def test_gdumb_would_drop_the_tasks():
    strategy = SupSup(mlp(), plugins=[GDumbPlugin()], **QUICK)
    with pytest.raises(
        ValueError, match=r"GDumbPlugin replaces the strategy's model by a fresh one.*finished tasks would be lost"
    ):
        strategy.train(class_stream(1).train_stream[0])


def test_kkt_needs_classes():
    strategy = ExSSNeT(mlp(), criterion=nn.MSELoss(), kkt="knn_best", **QUICK)
    strategy.plugins[0]._iterations = 1
    strategy.mbatch = [inputs(4), torch.randn(4, 2), torch.zeros(4)]
    with pytest.raises(ValueError, match=r"one class number a sample, got targets of torch.float32 and shape \(4, 2\)"):
        strategy.plugins[0].after_forward(strategy)
