"""Compatibility: torchvision's networks, a causal transformer, optimizers, plugins and number formats."""

import warnings

import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.training.plugins import EWCPlugin, LRSchedulerPlugin, ReplayPlugin, SupervisedPlugin
from packaging.version import Version
from torch import nn
from torch.optim import SGD, Optimizer, RMSprop
from torch.optim.lr_scheduler import ExponentialLR

from avalanche_supermask import CLNP, ExSSNeT, ImpressLearn, MaskedModel, SupSup
from avalanche_supermask.selection import selection
from avalanche_supermask.strategies.clnp.entries import FREE
from avalanche_supermask.strategies.clnp.pruning import PruningReport
from benchmarks.lib.assorted_networks import LARGE as NETWORKS
from tests.building import build
from tests.streams import class_stream, inputs, mlp, outputs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:task .. no free unit is left")


def images(n_tasks, n=12):
    generator = torch.Generator().manual_seed(0)
    splits = [(torch.rand((n, 3, 32, 32), generator=generator), torch.arange(n) % 2) for _ in range(n_tasks)]
    return tensors_benchmark(train_tensors=splits, test_tensors=splits, task_labels=list(range(n_tasks)))


def learns_without_forgetting(strategy, stream, x):
    recorded = {}
    for experience in stream.train_stream:
        strategy.train(experience)
        recorded[experience.current_experience] = outputs(strategy.model, x, experience.current_experience)
        for key, before in recorded.items():
            assert torch.equal(outputs(strategy.model, x, key), before)
    assert not torch.equal(recorded[0], recorded[1])


@pytest.mark.parametrize("method", [SupSup, ExSSNeT, ImpressLearn])
@pytest.mark.parametrize("network", NETWORKS)
def test_networks(network, method):
    options = {"n_basis": 2} if method is ImpressLearn else {}
    strategy = method(
        NETWORKS[network](), density=0.3, train_epochs=2, train_mb_size=6, evaluator=None, seed=0, **options
    )
    learns_without_forgetting(strategy, images(3), torch.rand(4, 3, 32, 32))


@pytest.mark.parametrize("network", ["resnet18", "mobilenet_v3"])
def test_clnp_on_residual_depthwise_and_squeeze_and_excitation_layers(network, monkeypatch):
    def claim_some(units, claimed, activity, *, place, **_):
        mine = (claimed == FREE) & (torch.rand(len(claimed), generator=torch.Generator().manual_seed(place)) < 0.4)
        return PruningReport(0.0, 1.0, 1.0, {}), torch.where(mine, place, claimed), mine

    monkeypatch.setattr("avalanche_supermask.strategies.clnp.plugin.prune", claim_some)  # random labels claim none
    strategy = CLNP(NETWORKS[network](), train_mb_size=6, evaluator=None, seed=0)
    x = torch.rand(4, 3, 32, 32)
    learns_without_forgetting(strategy, images(2, n=24), x)
    before = outputs(strategy.model, x, 0)
    free = strategy.method.claims.free(strategy.model)
    with torch.no_grad():
        for name, weight in strategy.model.subnetworks.frozen.items():
            weight[free[name]] += 1.0
    strategy.model.to("cpu")  # clears the cache
    assert torch.equal(outputs(strategy.model, x, 0), before)
    small = strategy.export(0, slim=True)
    with torch.no_grad():
        assert torch.allclose(small(x), before, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < 0.3 * sum(p.numel() for p in strategy.model.net.parameters())


@pytest.mark.parametrize(
    ("network", "named"),
    [
        ("vit", r"the network itself \(VisionTransformer\) has weights, such as 'class_token'"),
        ("convnext", r"module 'features\.0\.1' \(LayerNorm2d\) has weights"),
    ],
)
def test_clnp_names_the_module_that_it_cannot_prune(network, named):
    with pytest.raises(ValueError, match=named):
        CLNP(NETWORKS[network](), train_mb_size=6, evaluator=None, seed=0).train(images(1, n=40).train_stream[0])


class Lion(Optimizer):
    """An optimizer that PyTorch does not have: it steps by the sign of the momentum."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    p.sub_(group["lr"] * (0.9 * momentum + 0.1 * p.grad).sign())
                    momentum.mul_(0.99).add_(p.grad, alpha=0.01)


class Clip(SupervisedPlugin, supports_distributed=False):
    def before_update(self, strategy, **kwargs):
        nn.utils.clip_grad_norm_(strategy.model.parameters(), 0.1)


@pytest.mark.parametrize("method", [SupSup, ExSSNeT])
@pytest.mark.parametrize("optimizer", [lambda p: RMSprop(p, lr=1e-3), lambda p: Lion(p, lr=1e-3)])
def test_optimizers(method, optimizer):
    net = mlp()
    strategy = method(net, optimizer=optimizer(net.parameters()), train_epochs=2, train_mb_size=16, evaluator=None)
    learns_without_forgetting(strategy, class_stream(3), inputs())


@pytest.mark.parametrize("companion", ["scheduler", "clipping", "replay", "all"])
def test_plugins(companion):
    net = mlp()
    optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
    made = {
        "scheduler": [LRSchedulerPlugin(ExponentialLR(optimizer, 0.9))],
        "clipping": [Clip()],
        "replay": [ReplayPlugin(mem_size=20)],
    }
    made["all"] = [EWCPlugin(ewc_lambda=1.0), *(plugin for plugins in made.values() for plugin in plugins)]
    plugins = made[companion]
    strategy = ExSSNeT(
        net, optimizer=optimizer, plugins=plugins, train_epochs=2, weight_epochs=1, train_mb_size=16, evaluator=None
    )
    learns_without_forgetting(strategy, class_stream(3), inputs())


@pytest.mark.parametrize("method", [SupSup, ExSSNeT, ImpressLearn])
def test_double_precision(method):
    options = {"n_basis": 2} if method is ImpressLearn else {}
    strategy = method(mlp().double(), density=0.3, train_epochs=2, train_mb_size=16, evaluator=None, **options)
    x, y = inputs(48).double(), torch.arange(48) % 2
    stream = tensors_benchmark(
        train_tensors=[(x, y), (x.flip(0), y), (x * 2, y)], test_tensors=[(x, y)] * 3, task_labels=[0, 1, 2]
    )
    learns_without_forgetting(strategy, stream, x)
    assert outputs(strategy.model, x, 0).dtype == torch.float64


def test_bfloat16_autocast():
    strategy = ExSSNeT(mlp(), density=0.3, train_epochs=2, weight_epochs=1, train_mb_size=16, evaluator=None, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        learns_without_forgetting(strategy, class_stream(3), inputs())
    weights = strategy.model.effective_weights(0)
    assert all(w.dtype == torch.float32 for w in weights.values())


@pytest.mark.skipif(Version(torch.__version__) < Version("2.6"), reason="its compiler fails on such modules")
def test_a_compiled_copy_in_place_of_the_model_is_refused():
    strategy = build("supsup", mlp())
    strategy.model = torch.compile(strategy.model, backend="eager")
    with pytest.raises(TypeError, match=r"call strategy.model.compile\(\), which compiles it in place"):
        strategy.train(class_stream(1).train_stream[0])


@pytest.mark.skipif(Version(torch.__version__) < Version("2.6"), reason="its compiler fails on such modules")
@pytest.mark.parametrize("compiled", ["network", "model"])
@pytest.mark.filterwarnings("ignore")  # warnings of the compiler
def test_torch_compile_changes_no_bit_and_forgets_nothing(compiled):
    def learned(compiled):
        torch.manual_seed(0)
        net = torch.compile(mlp(), backend="aot_eager") if compiled == "network" else mlp()
        strategy = ExSSNeT(net, train_epochs=2, weight_epochs=1, train_mb_size=16, evaluator=None, seed=0, density=0.3)
        if compiled == "model":
            strategy.model.compile(backend="aot_eager")
        recorded = []
        for experience in class_stream(2).train_stream:
            strategy.train(experience)
            recorded.append(outputs(strategy.model, inputs(), 0))
        return recorded

    plain, found = learned(None), learned(compiled)
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], plain[0])


@pytest.mark.skipif(Version(torch.__version__) < Version("2.6"), reason="its compiler fails on such modules")
def test_torch_compile_gets_the_network_and_not_the_choice_of_masks():
    torch.compiler.reset()  # other tests compile the same functions
    operators = []

    def compiled(graph, inputs):
        operators.append([str(node.target) for node in graph.graph.nodes if node.op.startswith("call")])
        return graph.forward

    model = MaskedModel(mlp(), seed=0)
    model.begin(0, 0)
    model.set_scores(model.fresh_scores(0))
    model.learn_scores(selection(model.masked_shapes, density=0.3))
    torch.compile(mlp(), backend=compiled)(inputs())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = torch.compile(model, backend=compiled)(inputs(), 0)
    assert torch.equal(found, model(inputs(), 0))
    assert len(operators) == 2
    assert operators[0] == operators[1]
    assert not any("lru_cache" in str(warning.message) for warning in caught)
