import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from avalanche_supermask import CLNP, ExSSNeT, ImpressLearn, MaskedModel, SupSup
from avalanche_supermask.model.parameter_kinds import is_norm, padding_rows, rescaled_in_place
from tests.building import build
from tests.streams import class_stream, inputs, mlp, outputs, train_all

QUICK = {"train_epochs": 2, "train_mb_size": 16, "evaluator": None, "seed": 0}


class RMSNorm(nn.Module):
    def __init__(self, width, shape=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape or width))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class LlamaRMSNorm(RMSNorm):
    pass


class Rescale(RMSNorm):  # recognised as a norm only by the name of its module
    pass


class NormalNoise(RMSNorm):
    pass


class NormedLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return x @ nn.functional.normalize(self.weight, dim=1).T


def with_norm(norm, place="norm"):
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU())
    net.add_module(place, norm)
    net.add_module("fc", nn.Linear(8, 2))
    return net


@pytest.mark.parametrize(
    ("norm", "place", "found"),
    [
        (RMSNorm(8), "a", True),
        (LlamaRMSNorm(8), "a", True),
        (Rescale(8), "pre_norm", True),
        (Rescale(8), "a", False),
        (NormalNoise(8), "a", False),
        (RMSNorm(8, (1, 8)), "a", True),
        (NormedLinear(), "norm1", False),
        (nn.LayerNorm(8), "a", True),
    ],
)
def test_a_norm_is_known_by_its_class_or_its_name(norm, place, found):
    net = with_norm(norm, place)
    assert is_norm(net, f"{place}.weight") == found
    masked = MaskedModel(net).masked_names
    assert (f"{place}.weight" in masked) == isinstance(norm, NormedLinear)


def test_norms_of_transformers():
    transformers = pytest.importorskip("transformers")
    small = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    llama = transformers.LlamaModel(transformers.LlamaConfig(**small, num_attention_heads=2))
    t5 = transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )
    for net, n in ((llama, 3), (t5, 3)):
        model = MaskedModel(net, init="keep", per_task="norm")
        assert len(model._own_names) == n
        assert all("norm" in name for name in model._own_names)


def test_each_task_has_a_norm_of_its_own():
    strategy = train_all(SupSup(with_norm(RMSNorm(8)), per_task="norm", **QUICK), class_stream(2))
    first, second = (strategy.model.subnetworks.task_private(key)["norm.weight"] for key in (0, 1))
    assert not torch.equal(first, second)


def test_no_norm_at_all_is_said():
    with pytest.warns(UserWarning, match=r"per_task='norm', but no module of Sequential is a norm.*own=\[\.\.\.\]"):
        MaskedModel(mlp(), per_task="norm")
    with pytest.warns(UserWarning, match="nothing is each task's own"):
        MaskedModel(with_norm(nn.BatchNorm1d(8, affine=False)), per_task="norm")


# ---------------------------------------------------------------------- padding


class Words(nn.Module):
    """A network on tokens that are computed from the pixels; 0 is padding."""

    def __init__(self, kind=nn.Embedding, tied=False, **options):
        super().__init__()
        self.tokens, self.fc = kind(11, 8, padding_idx=0, **options), nn.Linear(8, 2)
        self.out = nn.Linear(8, 11, bias=False)
        if tied:
            self.out.weight = self.tokens.weight
        self.tied, self.bag = tied, kind is nn.EmbeddingBag

    def forward(self, x):
        ids = (x.flatten(1) > 0).long().cumsum(1) % 11
        h = self.tokens(ids) if self.bag else self.tokens(ids).sum(dim=1)
        return self.out(h) if self.tied else self.fc(h)


METHODS = {
    "supsup": (SupSup, {}),
    "threshold": (SupSup, {"density": None}),
    "exssnet": (ExSSNeT, {"weight_epochs": 1}),
    "exssnet, weights only": (ExSSNeT, {"weight_epochs": 2, "density": 1.0}),
    "impresslearn": (ImpressLearn, {"n_basis": 1}),
    "impresslearn, random": (ImpressLearn, {"n_basis": 2, "basis": "random", "own_last_mask": True}),
    "kept weights": (ExSSNeT, {"init": "keep"}),
    "own embedding": (SupSup, {"own": ["tokens.*"]}),
}


@pytest.mark.parametrize("kind", ["embedding", "bag", "tied"])
@pytest.mark.parametrize("method", METHODS)
def test_the_row_of_padding_is_zero_in_every_task(method, kind):
    if (method, kind) == ("own embedding", "tied"):
        pytest.skip("an output layer that is the task's own learns each of its rows")
    cls, options = METHODS[method]
    torch.manual_seed(0)
    net = Words(nn.EmbeddingBag if kind == "bag" else nn.Embedding, tied=kind == "tied")
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05, weight_decay=0.1)
    strategy = cls(net, optimizer=optimizer, **{**QUICK, "density": 0.5, **options})
    for experience in class_stream(3).train_stream:
        strategy.train(experience)
        for key in strategy.model.task_keys:
            assert not strategy.model.export(key).tokens.weight[0].any()
    strategy.model.forget(1)
    weights = strategy.model.subnetworks.frozen
    assert not weights["tokens.weight"][0].any() if "tokens.weight" in weights else method == "own embedding"


@pytest.mark.parametrize("method", ["supsup", "exssnet", "impresslearn"])
def test_a_row_of_padding_that_was_brought_otherwise_stays_as_it_is(method):
    cls, options = METHODS[method]
    net = Words()
    net.tokens.weight.data[0] = torch.arange(8.0)
    strategy = train_all(cls(net, **{**QUICK, "density": 0.3, **options}), class_stream(3))
    for key in strategy.model.task_keys:
        assert torch.equal(strategy.model.effective_weights(key)["tokens.weight"][0], torch.arange(8.0))
        assert torch.equal(strategy.model.export(key)(inputs()), outputs(strategy.model, inputs(), key))
    strategy.model.forget(0)
    assert torch.equal(strategy.model.subnetworks.frozen["tokens.weight"][0], torch.arange(8.0))


def test_rows_and_weights_by_name():
    assert padding_rows(Words()) == {"tokens.weight": 0}
    assert padding_rows(nn.Sequential(nn.Embedding(5, 2, padding_idx=-1))) == {"0.weight": 4}
    assert padding_rows(nn.Sequential(nn.Embedding(5, 2), nn.Conv2d(1, 1, 3, padding=1))) == {}
    assert rescaled_in_place(Words(max_norm=1.0, tied=True)) == {"tokens.weight", "out.weight"}


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("method", METHODS)
def test_an_embedding_that_shortens_its_rows(method, kind):
    cls, options = METHODS[method]
    net, x = Words(kind, max_norm=0.2), inputs()
    strategy = cls(net, **{**QUICK, "density": 0.5, **options})
    recorded = {}
    for experience in class_stream(3).train_stream:
        strategy.train(experience)
        key = experience.current_experience
        recorded[key] = outputs(strategy.model, x, key)
        for old, before in recorded.items():
            for _ in range(2):  # A call must not change the next one.
                assert torch.equal(outputs(strategy.model, x, old), before)
            with torch.no_grad():
                assert torch.equal(strategy.model.export(old)(x), before)
    strategy.model.task_inference = "entropy"
    with torch.no_grad():
        assert strategy.model.eval()(x).shape == (16, 2)


# ---------------------------------------------------------------------- parametrizations


def normed(how, width=16):
    return nn.Sequential(
        nn.Flatten(), how(nn.Linear(36, width)), nn.ReLU(), how(nn.Linear(width, width)), nn.ReLU(), nn.Linear(width, 2)
    )


def test_gains_of_weight_norm_are_never_masked():
    for options in ({}, {"mask": "all"}):
        model = MaskedModel(normed(weight_norm), **options)
        assert not any("original0" in name for name in model.masked_names)
        assert "1.parametrizations.weight.original1" in model.masked_names
    own = MaskedModel(normed(weight_norm), per_task="norm")._own_names
    assert own == ["1.parametrizations.weight.original0", "3.parametrizations.weight.original0"]


@pytest.mark.parametrize("how", [weight_norm, spectral_norm, orthogonal])
@pytest.mark.parametrize("method", ["supsup", "exssnet", "impresslearn"])
def test_parametrized_weights(method, how):
    cls, options = METHODS[method]
    strategy, x = cls(normed(how), **{**QUICK, "density": 0.3, **options}), inputs()
    recorded = {}
    for experience in class_stream(3).train_stream:
        strategy.train(experience)
        recorded[experience.current_experience] = outputs(strategy.model, x, experience.current_experience)
        for key, before in recorded.items():
            assert torch.equal(outputs(strategy.model, x, key), before)
            with torch.no_grad():
                assert torch.equal(strategy.model.export(key)(x), before)
    assert all(out.isfinite().all() for out in recorded.values())


@pytest.mark.parametrize("method", ["supsup", "exssnet"])
def test_rows_that_a_mask_leaves_empty_are_zero_and_can_come_back(method):
    cls, options = METHODS[method]
    strategy = cls(normed(weight_norm), mask_lr=0.05, **{**QUICK, "density": 0.02, "train_epochs": 20, **options})
    train_all(strategy, class_stream(2, n=96))
    model, x = strategy.model, inputs()
    empty = [(w == 0).all(dim=1) for w in model.effective_weights(0).values() if w.shape[0] > 2]
    assert any(rows.any() for rows in empty)
    plain = model.export(0)
    assert type(plain[1].parametrizations.weight[0]).__module__.startswith("torch.")
    with torch.no_grad():
        assert torch.equal(plain(x), outputs(model, x, 0))
        assert not plain[1].weight[empty[0]].any()
    begun = model.fresh_scores(0)["1.parametrizations.weight.original1"]
    learned = model.subnetworks.scores["1.parametrizations.weight.original1"]
    assert (begun != learned.detach()).all(), "rows that are empty learn as well"


def test_clnp_says_that_it_takes_no_parametrized_weight():
    with pytest.raises(ValueError, match=r"module '1\.parametrizations\.weight' \(ParametrizationList\)"):
        CLNP(normed(weight_norm), **QUICK).train(class_stream(1).train_stream[0])


class Spectral(nn.Module):
    """A layer with complex weights in the space of frequencies, as in Fourier neural operators."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(36, 24), nn.Linear(24, 2)
        self.filter = nn.Parameter(torch.ones(13, dtype=torch.cfloat))

    def forward(self, x):
        return self.out(torch.fft.irfft(torch.fft.rfft(self.hidden(x.flatten(1)).relu()) * self.filter, n=24))


@pytest.mark.parametrize("method", ["exssnet", "sparse_finetuning"])
def test_complex_parameters_stay_with_a_warning_or_are_each_tasks_own(method):
    with pytest.warns(UserWarning, match=r"complex parameters of Spectral cannot be masked .*\(filter\).*own="):
        build(method, Spectral())
    strategy, recorded = build(method, Spectral(), own=["filter"]), []
    train_all(strategy, class_stream(2), lambda t: recorded.append(outputs(strategy.model, inputs(), t)))
    assert torch.equal(outputs(strategy.model, inputs(), 0), recorded[0])
    own = [strategy.model.tensors_of(task)["filter"] for task in (0, 1)]
    assert not torch.equal(*own)
    assert bool((own[0].imag != 0).any())
