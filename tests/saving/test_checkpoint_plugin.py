"""A run that stops within an experience and resumes from a checkpoint equals the uninterrupted run."""

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.supervised import EWC, LwF, Naive, Replay
from torch import nn
from torch.nn import CrossEntropyLoss
from torch.optim import SGD

from avalanche_supermask import CachedTensors, CheckpointPlugin, maybe_load_checkpoint, methods, supermask_metrics
from tests.building import build
from tests.streams import ResNet, class_stream, inputs, mlp, outputs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:task .. no free unit is left")
EPOCHS = 4
UPSTREAM = {
    "naive": (Naive, {}),
    "ewc": (EWC, {"ewc_lambda": 1.0}),
    "lwf": (LwF, {"alpha": 1.0, "temperature": 2.0}),
    "replay": (Replay, {"mem_size": 20}),
}


class PowerCutError(RuntimeError):
    pass


class CutAfter(SupervisedPlugin, supports_distributed=False):
    """Raise an error after a number of iterations, like a power failure."""

    def __init__(self, iterations):
        super().__init__()
        self.left = iterations

    def after_training_iteration(self, strategy, **kwargs):
        self.left -= 1
        if self.left == 0:
            raise PowerCutError


def make(name, plugins):
    """Return a strategy with metrics, because their state must be restored too."""
    evaluator = EvaluationPlugin(
        accuracy_metrics(epoch=True, experience=True), loss_metrics(epoch=True), forgetting_metrics(experience=True),
        supermask_metrics(), strict_checks=False, loggers=[],
    )  # fmt: skip
    net = ResNet() if name in methods() else mlp()
    if name in methods():
        options = {"kkt": "knn_best"} if name == "exssnet" else {"finetune_epochs": 2} if name == "clnp" else {}
        return build(name, net, seed=None, train_epochs=EPOCHS, plugins=plugins, evaluator=evaluator, **options)
    kind, settings = UPSTREAM[name]
    optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    return kind(
        model=net, optimizer=optimizer, criterion=CrossEntropyLoss(), train_epochs=EPOCHS, train_mb_size=16,
        plugins=plugins, evaluator=evaluator, **settings,
    )  # fmt: skip


def run(name, path, *, seed=0, cut=0, every=1, cached=True, at_once=False):
    """Return the logits of all tasks and all metrics after the last task; None if the run was cut."""
    torch.manual_seed(seed)
    plugins = [CheckpointPlugin(path, every=every), *([CachedTensors()] if cached else [])]
    strategy, first = maybe_load_checkpoint(make(name, [*plugins, CutAfter(cut)]), path)
    strategy.plugins[len(plugins)].left = cut
    stream = class_stream(3)
    try:
        if at_once:
            strategy.train(stream.train_stream[first:])
        else:
            for experience in stream.train_stream[first:]:
                strategy.train(experience)
    except PowerCutError:
        return None
    last = strategy.eval(stream.test_stream)
    keys = range(3) if name in methods() else [None]
    logits = [
        outputs(strategy.model, inputs(), key) if key is not None else strategy.model.eval()(inputs()).detach()
        for key in keys
    ]
    return torch.stack(logits), last, strategy.evaluator.get_all_metrics()


def same(a, b):
    assert torch.equal(a[0], b[0])
    assert a[1] == b[1]
    assert a[2] == b[2]


@pytest.mark.parametrize("cut", [5, 14, 19])  # a task has 4 epochs of 3 iterations
@pytest.mark.parametrize("name", [*methods(), *UPSTREAM])
def test_a_run_goes_on_inside_its_experience(name, cut, tmp_path):
    whole = run(name, tmp_path / "whole.pkl")
    assert run(name, tmp_path / "cut.pkl", cut=cut) is None
    same(run(name, tmp_path / "cut.pkl", seed=99), whole)


@pytest.mark.parametrize("name", ["exssnet", "clnp", "ewc"])
def test_with_the_stock_loaders_cut_again_and_again(name, tmp_path):
    whole = run(name, tmp_path / "whole.pkl", cached=False)
    found, lives = None, 0
    while found is None:
        lives += 1
        found = run(name, tmp_path / "cut.pkl", cached=False, seed=lives - 1, cut=5)
    assert lives > 5
    same(found, whole)


def test_all_experiences_in_one_call(tmp_path):
    whole = run("supsup", tmp_path / "whole.pkl", at_once=True)
    assert run("supsup", tmp_path / "cut.pkl", at_once=True, cut=17) is None
    same(run("supsup", tmp_path / "cut.pkl", at_once=True, seed=5), whole)


def test_at_most_one_interval_is_lost(tmp_path):
    path = tmp_path / "cut.pkl"
    run("supsup", path, cut=11, every=2)  # The run stops in the fourth epoch; the last checkpoint is after the second.
    strategy, first = maybe_load_checkpoint(make("supsup", [CheckpointPlugin(path)]), path)
    assert (first, strategy.clock.train_exp_epochs) == (0, 2)


def test_between_experiences_it_is_an_ordinary_checkpoint(tmp_path):
    path = tmp_path / "done.pkl"
    strategy = make("supsup", [CheckpointPlugin(path)])
    strategy.train(class_stream(1).train_stream[0])
    _, first = maybe_load_checkpoint(make("supsup", [CheckpointPlugin(path)]), path)
    assert first == 1


def test_every_counts_epochs():
    with pytest.raises(ValueError, match="every counts epochs: expected 1 or more, got 0"):
        CheckpointPlugin("x", every=0)


def test_a_folder_that_is_not_there_shows_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*missing to write checkpoints into; make it first"):
        CheckpointPlugin(tmp_path / "missing" / "run.pkl")


def test_what_cannot_be_saved_is_named_before_training(tmp_path):
    class Local(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(36, 2)

        def forward(self, x):
            return self.layer(x.flatten(1))

    strategy = build("supsup", Local(), plugins=[CheckpointPlugin(tmp_path / "run.pkl")])
    with pytest.raises(ValueError, match=r"no checkpoint can be written: strategy.model cannot be pickled .*top level"):
        strategy.train(class_stream(1).train_stream[0])
    assert strategy.clock.train_iterations == 0
