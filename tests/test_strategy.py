"""Each argument of a strategy is accepted, or refused with the name of the public class."""

import inspect
import re
import subprocess
import sys

import pytest
import torch
from torch.optim import LBFGS, SGD

import avalanche_supermask
from avalanche_supermask import CLNP, ExSSNeT, HopSupSup, ImpressLearn, MaskedModel, SupSup
from avalanche_supermask.strategy import check_device
from tests.streams import class_stream, inputs, mlp, outputs, train_all

PLUGINS = [name for name in avalanche_supermask.__all__ if f"{name}Plugin" in avalanche_supermask.__all__]


@pytest.mark.parametrize("name", PLUGINS)
def test_a_strategy_takes_what_its_plugin_takes(name):
    strategy, plugin = (getattr(avalanche_supermask, n) for n in (name, f"{name}Plugin"))
    taken = {*inspect.signature(strategy.__init__).parameters}
    fixed = {"exclusive"} if name == "ExSSNeT" else set()  # SSNeT has the other value.
    if name == "SupSupNNs":
        fixed |= {"transfer", "task_key", "schedule"}
    assert {*inspect.signature(plugin.__init__).parameters} - taken - fixed == set()


@pytest.mark.parametrize(
    ("cls", "arguments", "said"),
    [
        (SupSup, {"densty": 0.1}, r"SupSup got an unexpected argument 'densty'; did you mean 'density'"),
        (ExSSNeT, {"train_epoch": 4, "weight_epochs": 2}, "ExSSNeT got .*'train_epoch'; did you mean 'train_epochs'"),
        (CLNP, {"per_tasks": "norm"}, r"CLNP got an unexpected argument 'per_tasks'"),
        (ImpressLearn, {"batch_size": 8}, r"ImpressLearn got an unexpected argument 'batch_size'"),
        (HopSupSup, {"density": 0.1}, r"^HopSupSup got an unexpected argument 'density'; it takes \['cosine_schedule'"),
        (HopSupSup, {"restart": 2}, r"^HopSupSup got an unexpected argument 'restart'; did you mean 'restarts'"),
        (SupSup, {"zzz": 1}, r"SupSup got an unexpected argument 'zzz'; it takes \['block', 'criterion'"),
    ],
)
def test_a_typo_is_named_with_what_was_meant(cls, arguments, said):
    with pytest.raises(TypeError, match=said):
        cls(mlp(), **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"init": "keep"},
        {"own": ["5.*"]},
        {"mask": "all"},
        {"scores": "magnitude"},
        {"per_task": "all"},
        {"exclude": ["1.*"]},
        {"frozen": "mask"},
        {"seed": 3},
        {"outside": "base"},
    ],
)
@pytest.mark.parametrize("cls", [SupSup, ExSSNeT, ImpressLearn])
def test_how_to_wrap_is_refused_beside_a_wrapped_model(cls, arguments):
    ((name, value),) = arguments.items()
    wanted = re.escape(f"{name}={value!r}")
    with pytest.raises(ValueError, match=rf"wrapped with {wanted}, but the model .*pass MaskedModel\(net, {wanted}\)"):
        cls(MaskedModel(mlp(), seed=0), evaluator=None, **arguments)
    model = MaskedModel(mlp(), **{"seed": 0, **arguments})
    assert cls(model, evaluator=None, **arguments).model is model, "what it is already is no contradiction"


@pytest.mark.parametrize("arguments", [{"own": ["5.*"]}, {"init": "keep"}, {"mask": "weights"}])
def test_what_clnp_chooses_itself_is_refused(arguments):
    with pytest.raises(TypeError, match=rf"^CLNP chooses {next(iter(arguments))} itself; leave this out"):
        CLNP(mlp(), evaluator=None, **arguments)
    as_told = MaskedModel(mlp(), **{**arguments, "mask": "all"})
    assert train_all(CLNP(as_told, train_mb_size=16, evaluator=None), class_stream(1)).model.task_keys == [0]


def test_clnp_needs_a_model_whose_biases_are_masked():
    with pytest.raises(
        ValueError, match=r"wrapped with mask='all', but the model .*pass MaskedModel\(net, mask='all'\)"
    ):
        CLNP(MaskedModel(mlp()), evaluator=None)
    assert CLNP(MaskedModel(mlp(), mask="all", init="keep", seed=3), evaluator=None).model.seed == 3


def test_exssnet_takes_transfer():
    options = {"train_epochs": 2, "train_mb_size": 16, "evaluator": None, "seed": 0}
    fresh, mean = (ExSSNeT(mlp(), transfer=transfer, **options) for transfer in ("none", "scores"))
    for strategy in (fresh, mean):
        torch.manual_seed(0)
        for experience in class_stream(2).train_stream:
            strategy.train(experience)
    assert not torch.equal(outputs(fresh.model, inputs(), 1), outputs(mean.model, inputs(), 1))
    assert torch.equal(outputs(fresh.model, inputs(), 0), outputs(mean.model, inputs(), 0))


def test_a_device_that_is_not_there():
    check_device("cpu")
    check_device(torch.device("cpu"))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda' is not available on this machine; use 'cpu'"):
            SupSup(mlp(), device="cuda", evaluator=None)
    with pytest.raises(ValueError, match=r"device must be 'cpu', 'cuda'.*got 'gpu'"):
        SupSup(mlp(), device="gpu", evaluator=None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "command", ["leaderboard run --methods supsup --out x", "benchmarks.costs.speed --device cuda --out x"]
)
def test_scripts_say_in_one_line_that_there_is_no_gpu(command, tmp_path):
    words = [*command.split(), *(["--device", "cuda"] if "--device" not in command else [])]
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False)
    assert done.returncode
    assert "device 'cuda' is not available" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


class WithClosure:
    """A mixin for LBFGS, which needs a closure that Avalanche does not pass."""

    def optimizer_step(self):
        def closure():
            self.optimizer.zero_grad()
            loss = self._criterion(self.forward(), self.mb_y)
            loss.backward()
            return loss

        self.losses = [*getattr(self, "losses", []), float(self.optimizer.step(closure).detach())]


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, "adam"])
def test_what_is_no_optimizer_is_refused(optimizer):
    with pytest.raises(
        TypeError, match=r"optimizer must be None for Adam, or an optimizer of the network's parameters"
    ):
        SupSup(mlp(), optimizer=optimizer, train_epochs=1, evaluator=None)


def test_an_optimizer_of_another_network_is_refused():
    with pytest.raises(
        ValueError, match=r"the SGD has no parameter of the Sequential .* create it with model.parameters"
    ):
        SupSup(mlp(), optimizer=SGD(mlp().parameters(), lr=0.1), evaluator=None)
    net = mlp()
    head = SupSup(net, optimizer=SGD(net[-1].parameters(), lr=0.1), evaluator=None, seed=0)  # some of them suffice
    head.train(class_stream(1).train_stream[0])


@pytest.mark.parametrize("cls", [SupSup, ExSSNeT, ImpressLearn, CLNP])
def test_lbfgs_learns(cls):
    made = type(f"Lbfgs{cls.__name__}", (WithClosure, cls), {})
    net = mlp()
    optimizer = LBFGS(net.parameters(), lr=0.1, max_iter=5)
    options = {} if cls is CLNP else {"density": 0.5}
    strategy = made(net, optimizer=optimizer, train_epochs=8, train_mb_size=96, evaluator=None, seed=0, **options)
    x, recorded = inputs(), {}
    for experience in class_stream(3, n=96).train_stream:
        strategy.losses = []
        strategy.train(experience)
        assert strategy.losses[-1] < 0.8 * strategy.losses[0]
        recorded[experience.current_experience] = outputs(strategy.model, x, experience.current_experience)
        for key, before in recorded.items():
            assert torch.equal(outputs(strategy.model, x, key), before)
    mine = {id(p) for p in strategy.model.parameters()}
    assert {id(p) for p in optimizer._params} == mine


def test_an_optimizer_that_needs_a_closure_says_what_to_do():
    net = mlp()
    with pytest.raises(TypeError, match=r"LBFGS\.step\(\) needs a closure .*optimizer_step\(\)"):
        SupSup(net, optimizer=LBFGS(net.parameters()), evaluator=None)
