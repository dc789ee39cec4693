"""Rank 0 writes a checkpoint, and a group that resumes from it ends with the bits of an uninterrupted group."""

import os

import pytest
import torch

from avalanche_supermask import CachedTensors, CheckpointPlugin, load, maybe_load_checkpoint, save
from avalanche_supermask.distributed.digests import digest
from tests.distributed.learning import evaluator, strategy_of
from tests.distributed.processes import group_of
from tests.saving.test_checkpoint_plugin import CutAfter, PowerCutError
from tests.streams import NETWORKS, class_stream


def run(rank, path, name, network, cut, seed=0, mine_only=True):
    """Learn three tasks, from the checkpoint on if there is one; ``cut`` stops the run after that many batches."""
    if mine_only and rank:
        path = f"{path}.of_another_machine"  # The processes share only the data.
    plugins = [CheckpointPlugin(path), CachedTensors(), *([CutAfter(cut)] if cut else [])]
    strategy = strategy_of(name, network, plugins=plugins, evaluator=evaluator(), train_epochs=3)
    torch.manual_seed(seed + rank)
    strategy, first = maybe_load_checkpoint(strategy, path)
    if not cut:
        strategy.plugins = [plugin for plugin in strategy.plugins if not isinstance(plugin, CutAfter)]
    try:
        for experience in class_stream(3, n=50).train_stream[first:]:
            strategy.train(experience)
    except PowerCutError:
        return os.path.exists(path)
    return digest(strategy.model.state_dict()), strategy.evaluator.get_all_metrics()


@pytest.mark.parametrize(("name", "network"), [("exssnet", "resnet"), ("clnp", "resnet")])
@pytest.mark.parametrize("cut", [4, 9])
def test_a_group_that_stopped_inside_a_task_goes_on(name, network, cut, tmp_path):
    whole = group_of(2).run(run, str(tmp_path / "a"), name, network, 0)
    wrote = group_of(2).run(run, str(tmp_path / "b"), name, network, cut)
    assert wrote == [True, False], "rank 0 writes, and no other"
    assert group_of(2).run(run, str(tmp_path / "b"), name, network, 0, 7) == whole


def with_so_many(rank, path):
    strategy = strategy_of("supsup", "mlp", plugins=[CheckpointPlugin(path)], train_epochs=3)
    strategy, first = maybe_load_checkpoint(strategy, path)
    strategy.train(class_stream(1, n=50).train_stream[first])


def test_another_number_of_processes_within_a_task_is_told(tmp_path):
    path = str(tmp_path / "a")
    group_of(2).run(run, path, "supsup", "mlp", 4)
    with pytest.raises(RuntimeError, match=r"interrupts an experience that 2 processes were learning, and these are 1"):
        with_so_many(0, path)


def between_tasks(rank, path):
    strategy = strategy_of("supsup", "mlp", plugins=[CheckpointPlugin(path)])
    strategy, first = maybe_load_checkpoint(strategy, path)
    for experience in class_stream(2, n=50).train_stream[first : first + 1]:
        strategy.train(experience)
    return strategy.model.task_keys


def test_between_tasks_the_number_of_processes_may_change(tmp_path):
    path = str(tmp_path / "a")
    assert between_tasks(0, path) == [0]
    assert group_of(2).run(between_tasks, path) == [[0, 1]] * 2


def saved(rank, folder):
    strategy = strategy_of("supsup", "mlp")
    strategy.train(class_stream(1, n=50).train_stream[0])
    save(strategy.model, f"{folder}/{rank}.safetensors")
    return digest(strategy.model.effective_weights(0))


def test_rank_0_writes_the_compact_file(tmp_path):
    held = group_of(2).run(saved, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["0.safetensors"]
    loaded = load(tmp_path / "0.safetensors", NETWORKS["mlp"]())
    assert [digest(loaded.effective_weights(0))] * 2 == held
