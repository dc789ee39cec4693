"""A run that is saved and then resumed in a fresh process with another seed equals the uninterrupted run."""

import copy
import json
import subprocess
import sys

import dill
import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import InteractiveLogger
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.supervised import EWC, LwF, Naive, Replay
from torch import nn
from torch.nn import CrossEntropyLoss
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.optim import SGD

from avalanche_supermask import CheckpointPlugin, HopSupSup, maybe_load_checkpoint, methods, save_checkpoint
from tests.building import build
from tests.streams import ResNet, class_stream, inputs, mlp, outputs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:task .. no free unit is left")


def make(name, optimizer="sgd"):
    net = ResNet() if name in methods() else mlp()
    sgd = SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    common = {"optimizer": sgd, "train_epochs": 2, "train_mb_size": 16, "evaluator": None}
    if name in methods():
        options = {"kkt": "knn_best", "keep_scores": True} if name == "exssnet" else {}
        return build(name, net, optimizer=optimizer, seed=None, **options)
    extra = {"ewc": {"ewc_lambda": 1.0}, "lwf": {"alpha": 1.0, "temperature": 2.0}, "replay": {"mem_size": 20}}
    classes = {"naive": Naive, "ewc": EWC, "lwf": LwF, "replay": Replay}
    return classes[name](model=net, criterion=CrossEntropyLoss(), **extra.get(name, {}), **common)


def run(name, path, stop_after=None, seed=0, optimizer="sgd"):
    """Train from the checkpoint on, if there is one, and return the logits of all tasks after the last task."""
    torch.manual_seed(seed)
    strategy, first = maybe_load_checkpoint(make(name, optimizer), path)
    stream = class_stream(3)
    for experience in stream.train_stream[first:]:
        strategy.train(experience)
        if stop_after is not None:
            save_checkpoint(strategy, path)
            if experience.current_experience == stop_after:
                return None
    is_masked = name in methods()
    return [
        (outputs(strategy.model, inputs(), key) if is_masked else strategy.model.eval()(inputs())).tolist()
        for key in range(3)
    ]


@pytest.mark.parametrize("name", [*methods(), "naive", "ewc", "lwf", "replay"])
def test_a_resumed_run_equals_the_uninterrupted_one(name, tmp_path):
    path = tmp_path / "checkpoint.pkl"
    whole = run(name, tmp_path / "none.pkl")
    run(name, path, stop_after=0)
    assert run(name, path, seed=123) == whole


def test_with_the_default_optimizer(tmp_path):
    whole = run("exssnet", tmp_path / "none.pkl", optimizer=None)
    run("exssnet", tmp_path / "checkpoint.pkl", stop_after=1, optimizer=None)
    assert run("exssnet", tmp_path / "checkpoint.pkl", seed=5, optimizer=None) == whole


def test_in_a_fresh_process(tmp_path):
    path = tmp_path / "checkpoint.pkl"
    whole = run("exssnet", tmp_path / "none.pkl")
    run("exssnet", path, stop_after=1)
    code = (
        "import json, sys, torch; torch.set_num_threads(1); from tests.saving.test_checkpoint import run; "
        "print(json.dumps(run('exssnet', sys.argv[1], seed=99)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == whole


def test_without_a_file_nothing_is_loaded(tmp_path):
    strategy = make("supsup")
    assert maybe_load_checkpoint(strategy, tmp_path / "none.pkl") == (strategy, 0)


def test_damaged_and_foreign_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / "checkpoint.pkl"
    strategy = make("supsup")
    strategy.train(class_stream(1).train_stream[0])
    save_checkpoint(strategy, path)
    whole = path.read_bytes()
    weights = max(strategy.model.subnetworks.frozen.values(), key=lambda tensor: tensor.numel())
    place = whole.index(weights.numpy().tobytes()) + 5
    changed = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    for content in (b"", whole[:1], whole[: len(whole) // 2], whole[:-1], b"text\n" * 100, b"\x80\x04]\x94.", changed):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"checkpoint.pkl is damaged.*; take another copy") as told:
            maybe_load_checkpoint(make("supsup"), path)
        assert "\n" not in str(told.value)
    torch.save({"model": 1}, path)
    with pytest.raises(ValueError, match=r"checkpoint.pkl is no file of save_checkpoint\(\): it has no strategy"):
        maybe_load_checkpoint(make("supsup"), path)


def test_saving_leaves_dills_settings_and_no_other_file(tmp_path, capsys):
    before = dict(dill.settings)
    strategy = make("supsup")
    strategy.train(class_stream(1).train_stream[0])
    save_checkpoint(strategy, tmp_path / "checkpoint.pkl")
    maybe_load_checkpoint(make("supsup"), tmp_path / "checkpoint.pkl")
    assert dict(dill.settings) == before
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pkl"]
    assert capsys.readouterr().out == ""


def test_a_failed_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "checkpoint.pkl"
    strategy = make("supsup")
    strategy.train(class_stream(1).train_stream[0])
    save_checkpoint(strategy, path)
    before = path.read_bytes()
    strategy.cannot_be_pickled = (i for i in range(3))
    with pytest.raises(TypeError, match="cannot pickle 'generator' object"):
        save_checkpoint(strategy, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pkl"]


def test_a_logger_goes_on_printing_where_one_looks(tmp_path, capsys):
    def strategy():
        logger = InteractiveLogger()
        evaluator = EvaluationPlugin(accuracy_metrics(epoch=True), loggers=[logger])
        return build("supsup", mlp(), evaluator=evaluator)

    first, path = strategy(), tmp_path / "checkpoint.pkl"
    first.train(class_stream(1).train_stream[0])
    save_checkpoint(first, path)  # capsys replaces sys.stdout, as a notebook does.
    capsys.readouterr()
    resumed, _ = maybe_load_checkpoint(strategy(), path)
    resumed.train(class_stream(2).train_stream[1])
    assert "Top1_Acc_Epoch" in capsys.readouterr().out


@pytest.mark.parametrize("change", [spectral_norm, weight_norm, orthogonal])
def test_parametrized_layers_are_named_before_a_file_is_written(tmp_path, change):
    net, path = nn.Sequential(nn.Flatten(), change(nn.Linear(36, 8)), nn.Linear(8, 2)), tmp_path / "run.pkl"
    told = r"no checkpoint can be written: PyTorch does not pickle parametrized layers, and '1' is one .*save\("
    with pytest.raises(ValueError, match=told):
        save_checkpoint(build("supsup", net), path)
    with pytest.raises(ValueError, match=told):
        build("supsup", net, plugins=[CheckpointPlugin(path)]).train(class_stream(1).train_stream[0])
    assert not path.exists()
    plain = Naive(model=net, optimizer=SGD(net.parameters(), lr=0.1), criterion=CrossEntropyLoss(), evaluator=None)
    save_checkpoint(plain, path, exclude=["model", "optimizer"])  # then there is nothing to refuse
    assert path.exists()


@pytest.mark.parametrize(
    ("saved", "loading"), [("exssnet", "supsup"), ("clnp", "exssnet"), ("supsup", "naive"), ("hopsupsup", "naive")]
)
def test_the_state_of_another_method_is_refused(saved, loading, tmp_path):
    def strategy(name):
        if name == "naive":
            net = mlp()
            return Naive(
                model=net, optimizer=SGD(net.parameters(), lr=0.1), criterion=CrossEntropyLoss(), evaluator=None
            )
        return HopSupSup(mlp(), train_epochs=1, evaluator=None) if name == "hopsupsup" else build(name, mlp())

    one, other = strategy(saved), strategy(loading)
    one.train(class_stream(1).train_stream[0])
    save_checkpoint(one, tmp_path / "c")
    before = dict(vars(other))
    with pytest.raises(
        ValueError, match=r"c is of a run with \w+Plugin, and this strategy has .*; build the strategy as"
    ):
        maybe_load_checkpoint(other, tmp_path / "c")
    assert vars(other) == before


class CtrlC(SupervisedPlugin):
    """Interrupts the sixth batch when its outputs and its loss have a graph."""

    def __init__(self):
        super().__init__()
        self.batches = 0

    def before_backward(self, strategy, **kwargs):
        self.batches += 1
        if self.batches == 6:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", methods())
def test_an_interrupted_strategy_can_be_copied(name):
    strategy = build(name, mlp(), plugins=[CtrlC()])
    first, second = class_stream(2).train_stream
    with pytest.raises(KeyboardInterrupt):
        strategy.train(first)
    assert strategy.loss.grad_fn is not None
    copied = copy.deepcopy(strategy)
    state = torch.get_rng_state()
    results = []
    for each in (strategy, copied):
        torch.set_rng_state(state)
        each.train(first)
        each.train(second)
        results.append(outputs(each.model, inputs(16), 1))
    assert strategy.model is not copied.model
    assert torch.equal(*results)
