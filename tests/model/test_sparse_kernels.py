"""Sparse layers agree with dense ones for every shape, and their bits do not depend on the number of threads."""

import threading

import pytest
import torch
from torch.nn import functional as F

from avalanche_supermask.model import sparse_kernels, sparse_loops
from avalanche_supermask.model.sparse_kernels import CSR, complaint, convolution, linear, products, transposed


def weight(*shape, density=0.2, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype) * (torch.rand(shape, generator=generator) < density)


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(params=["both", "mkl", "numba"])
def library(request, monkeypatch):
    """Select which kernels are available."""
    if request.param == "mkl":
        monkeypatch.setattr(sparse_loops, "installed", lambda: False)
    if request.param == "numba":
        monkeypatch.setattr(sparse_kernels, "_has_mkl", lambda: False)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape", [(1, 5, 3), (3, 300, 70), (32, 9, 17), (131, 12, 10), (2, 3, 40, 8), (0, 5, 3), (300, 64, 33)]
)
def test_a_linear_layer_is_the_dense_one(shape, dtype, library):
    *batch, inputs, outputs = shape
    x = torch.randn(*batch, inputs, dtype=dtype)
    w, bias = weight(outputs, inputs, dtype=dtype), torch.randn(outputs, dtype=dtype)
    for b in (bias, None):
        out = linear(x, CSR(w), b)
        assert out.is_contiguous()
        torch.testing.assert_close(out, F.linear(x, w, b))
    torch.testing.assert_close(linear(x.flip(-1), CSR(w), bias), F.linear(x.flip(-1), w, bias))


@pytest.mark.parametrize("batch", [33, 40, 63, 64, 100, 129])
@pytest.mark.parametrize("inputs", [20, 1030])
def test_every_size_of_a_block_of_samples_gives_the_dense_layer(batch, inputs, monkeypatch):
    monkeypatch.setattr(sparse_kernels, "_has_mkl", lambda: False)
    x, w, bias = torch.randn(batch, inputs), weight(11, inputs), torch.randn(11)
    torch.testing.assert_close(linear(x, CSR(w), bias), F.linear(x, w, bias), atol=1e-4, rtol=1e-4)


def test_a_sample_gets_the_same_bits_in_every_batch():
    x, csr = torch.randn(200, 50), CSR(weight(30, 50))
    whole = linear(x, csr, None)
    for size in (40, 64, 77, 130):
        assert torch.equal(linear(x[:size], csr, None), whole[:size])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (7, 30), (30, 7), (64, 40), (13, 13), (0, 3)])
def test_a_transposed_copy_is_the_transposed_matrix(shape, dtype):
    x = torch.randn(shape, dtype=dtype)
    assert torch.equal(transposed(x), x.t())
    assert transposed(x).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 7, 8, 63, 64, 100, 200])
def test_products_are_those_of_the_chosen_rows(n, dtype):
    x, y = torch.randn(5, n, dtype=dtype), torch.randn(6, n, dtype=dtype)
    columns = torch.tensor([0, 5, 1, 1, 2, 4], dtype=torch.int32)
    starts = torch.tensor([0, 2, 2, 3, 5, 6], dtype=torch.int32)  # The second row has no entry.
    out = torch.full((8,), 9.0, dtype=dtype)
    products(starts.numpy(), columns.numpy(), x, y, out)
    rows = torch.tensor([0, 0, 2, 3, 3, 4])
    torch.testing.assert_close(out[:6], (x[rows] * y[columns.long()]).sum(dim=1))
    assert out[6:].tolist() == [9.0, 9.0]  # Numbers beyond the products stay as they were.


@pytest.mark.parametrize("empty", [torch.zeros(4, 6), torch.eye(4, 6)])
def test_rows_that_keep_nothing_are_the_bias(empty, library):
    x, bias = torch.randn(40, 6), torch.randn(4)
    torch.testing.assert_close(linear(x, CSR(empty), bias), F.linear(x, empty, bias))


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 2)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
@pytest.mark.parametrize("shape", [(5, 3, 11, 9, 4, 3, 3), (2, 8, 7, 7, 5, 1, 1), (1, 4, 16, 16, 3, 2, 5)])
def test_a_convolution_is_the_dense_one(shape, stride, padding, dilation):
    batch, channels, height, width, outputs, *kernel = shape
    x, w, bias = torch.randn(batch, channels, height, width), weight(outputs, channels, *kernel), torch.randn(outputs)
    csr = CSR(w)
    for images in (x, x[:, :, 1:, 1:], x[:1]):  # the same weight with other geometries
        for b in (bias, None):
            out = convolution(images, csr, b, stride=stride, padding=padding, dilation=dilation)
            torch.testing.assert_close(out, F.conv2d(images, w, b, stride, padding, dilation))


def test_two_threads_give_the_bits_of_one(two_threads, monkeypatch):
    monkeypatch.setattr(sparse_loops, "SMALL", 0)
    monkeypatch.setattr(sparse_kernels, "_has_mkl", lambda: False)
    csr, bias = CSR(weight(50, 40)), torch.randn(50)
    filters = CSR(weight(9, 6, 3, 3))
    for n in (3, 100, 700):
        x, images = torch.randn(n, 40), torch.randn(n, 6, 5, 5)
        how = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
        found = linear(x, csr, bias), convolution(images, filters, None, **how)
        torch.set_num_threads(1)
        alone = linear(x, csr, bias), convolution(images, filters, None, **how)
        torch.set_num_threads(2)
        assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))


def test_callers_in_several_threads_get_their_own_answers(two_threads, monkeypatch):
    monkeypatch.setattr(sparse_loops, "SMALL", 0)
    csr = CSR(weight(64, 32))
    xs = [torch.randn(300, 32) for _ in range(4)]
    expected = [linear(x, csr, None) for x in xs]
    wrong = []

    def ask(i):
        wrong.extend(i for _ in range(10) if not torch.equal(linear(xs[i], csr, None), expected[i]))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(xs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_nan_and_infinity_go_through_as_in_the_dense_layer():
    w = torch.eye(3)
    x = torch.tensor([[float("inf"), 1.0, float("nan")]]).expand(40, 3)
    out = linear(x, CSR(w), None)
    assert out[0, 0] == float("inf")
    assert out[0, 1] == 1.0
    assert out[0, 2].isnan()


def test_bytes_are_eight_a_kept_weight_and_four_a_row():
    w = weight(100, 200, density=0.1)
    kept = int(w.count_nonzero())
    csr = CSR(w)
    assert csr.kept == kept
    assert csr.nbytes == 8 * kept + 4 * 101
    assert torch.equal(csr.dense(), w)
    assert torch.equal(CSR(w.view(100, 8, 5, 5)).dense(), w.view(100, 8, 5, 5))


def test_what_has_no_kernel_is_said():
    assert complaint(torch.device("cpu"), torch.float32) is None
    assert complaint(torch.device("cuda"), torch.float32).startswith(
        "there is no sparse kernel for torch.float32 on cuda"
    )
    assert "bfloat16" in complaint(torch.device("cpu"), torch.bfloat16)
