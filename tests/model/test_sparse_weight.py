"""A network with sparse weights agrees with the dense network up to rounding, also after copies and moves."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer, mobilenet_v3_small, resnet18

from avalanche_supermask.model import sparse_loops
from avalanche_supermask.model.sparse_kernels import CSR
from avalanche_supermask.model.sparse_places import make_sparse, sparse_places
from avalanche_supermask.model.sparse_weight import SparseWeight
from tests.streams import TiedEmbedding


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True, **options)

    def forward(self, x):
        key = x if self.attention._qkv_same_embed_dim else x[..., : self.attention.kdim]
        return self.attention(x, key, x.flip(1))[0]


def encoder():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2, enable_nested_tensor=False)


CASES = {
    "linear": (lambda: nn.Sequential(nn.Linear(16, 30), nn.Hardswish(inplace=True), nn.Linear(30, 5)), (4, 7, 16)),
    "encoder": (encoder, (3, 7, 16)),
    "attention": (Attention, (3, 7, 16)),
    "attention of three inputs": (lambda: Attention(kdim=8), (3, 7, 16)),
    "resnet": (lambda: resnet18(num_classes=5), (2, 3, 32, 32)),
    "mobilenet": (lambda: mobilenet_v3_small(num_classes=4), (2, 3, 32, 32)),
    "vit": (lambda: VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=2), (2, 3, 32, 32)),
    "padded with reflections": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 8, 8)),
    "padded in words": (lambda: nn.Conv2d(3, 4, 3, padding="same"), (2, 3, 8, 8)),
}


def pair(make, density=0.3):
    """Return a network whose dense weights are mostly zero, and a copy with sparse weights."""
    dense = make().eval()
    names = sparse_places(dense)
    generator = torch.Generator().manual_seed(0)
    for name in names:
        p = dense.get_parameter(name)
        p.data *= torch.rand(p.shape, generator=generator) < density
    sparse = copy.deepcopy(dense)
    make_sparse(sparse, names)
    assert sum(isinstance(p, SparseWeight) for p in sparse.parameters()) == len(names) > 0
    return dense, sparse


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("loops", [True, False])
def test_a_network_answers_alike(case, loops, monkeypatch):
    monkeypatch.setattr(sparse_loops, "installed", lambda: loops)
    make, shape = CASES[case]
    dense, sparse = pair(make)
    x = torch.randn(shape)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            torch.testing.assert_close(sparse(x), dense(x))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    dense(a).square().sum().backward()
    sparse(b).square().sum().backward()
    torch.testing.assert_close(b.grad, a.grad)
    for p, q in zip(dense.parameters(), sparse.parameters(), strict=True):
        assert p.shape == q.shape
        if q.requires_grad and p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad)


@pytest.mark.parametrize("loops", [True, False])
def test_the_sparse_kernel_is_what_answers(loops, monkeypatch):
    monkeypatch.setattr(sparse_loops, "installed", lambda: loops)
    monkeypatch.setattr(CSR, "dense", lambda _: pytest.fail("computed densely"))
    make, shape = CASES["encoder"]
    _, sparse = pair(make)
    with torch.no_grad():
        sparse(torch.randn(shape))


def test_copies_and_pickles_answer_with_equal_bits_and_stay_parameters():
    _, sparse = pair(CASES["encoder"][0])
    x = torch.randn(3, 7, 16)
    with torch.no_grad():
        before = sparse(x)
        for other in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse)), copy.copy(sparse)):
            assert torch.equal(other(x), before)
            assert len(list(other.parameters())) == len(list(sparse.parameters()))
    assert sparse.state_dict().keys() == pair(CASES["encoder"][0])[0].state_dict().keys()
    sparse.requires_grad_(True)
    assert not any(p.requires_grad for p in sparse.parameters() if isinstance(p, SparseWeight))


def test_everything_else_gets_the_dense_weight():
    w = torch.eye(3) * 2
    sparse = SparseWeight(CSR(w))
    assert torch.equal(sparse.t() @ w, w.t() @ w)
    assert torch.equal(torch.stack([sparse, w]), torch.stack([w, w]))
    assert torch.equal(F.embedding(torch.tensor([1]), sparse), w[1:2])
    assert (sparse.shape, sparse.dtype, sparse.dim(), sparse.device.type) == (w.shape, w.dtype, 2, "cpu")
    with torch._C.DisableTorchFunctionSubclass():
        assert torch.equal(torch.mm(sparse, w), w @ w)


def test_moves_that_change_nothing_are_fine_and_others_say_what_to_do():
    _, sparse = pair(CASES["linear"][0])
    sparse.to("cpu").float()
    for move in (lambda net: net.double(), lambda net: net.to(torch.bfloat16), lambda net: net.to("meta")):
        with pytest.raises(
            NotImplementedError, match=r"a sparse weight stays torch.float32 on cpu.*execution = 'auto'"
        ):
            move(copy.deepcopy(sparse))


def test_inputs_without_a_kernel_say_so_and_name_auto():
    _, sparse = pair(CASES["linear"][0])
    x = torch.randn(4, 16)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(NotImplementedError, match=r"no sparse kernel under autocast.*'auto'"),
    ):
        sparse(x)
    with pytest.raises(NotImplementedError, match=r"input of torch.float64 and weight of torch.float32.*'auto'"):
        sparse(x.double())
    with pytest.raises(NotImplementedError, match=r"within vmap.*'auto'"):
        torch.vmap(sparse)(x)


def test_not_strict_computes_densely_there():
    w, x = torch.eye(3), torch.randn(4, 3)
    weight = SparseWeight(CSR(w), strict=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(F.linear(x, weight), F.linear(x, w))


def test_weights_of_other_layers_have_no_place():
    assert sparse_places(TiedEmbedding()) == frozenset()
    assert sparse_places(nn.LSTM(3, 4)) == frozenset()
    assert sparse_places(nn.Conv2d(4, 4, 3, groups=2)) == frozenset()

    class Own(nn.Linear):
        def forward(self, x):
            return x @ self.weight.t().abs()

    assert sparse_places(nn.Sequential(Own(2, 2), nn.Linear(2, 2))) == {"1.weight"}


def test_what_keeps_more_than_half_stays_dense():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight.data.tril_(-1)
    make_sparse(net, frozenset({"0.weight", "1.weight"}))
    assert [isinstance(layer.weight, SparseWeight) for layer in net] == [False, True]
