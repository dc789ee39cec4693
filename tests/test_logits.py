"""The selection of the logits among the outputs, and of the dimension of the classes."""

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from avalanche_supermask.logits import ABSENT, class_dimension, find_logits, replace_logits, widened

L, H = torch.randn(4, 2), torch.randn(4, 7)
Named = namedtuple("Named", "features logits")


@dataclass
class Out:
    hidden: Tensor
    logits: Tensor


OUTPUTS = {
    "tensor": (L, None),
    "key": ({"features": H, "logits": L}, None),
    "attribute": (SimpleNamespace(logits=L), None),
    "named": (Named(H, L), None),
    "dataclass": (Out(H, L), None),
    "first": ((L, H), None),
    "first of numbers": ({"ids": torch.arange(4), "loss": torch.tensor(1.0), "out": L, "h": H}, None),
    "nested": ([{"a": None}, (L, H)], None),
    "by name": ({"h": H, "scores": L}, "scores"),
    "by attribute": (SimpleNamespace(scores=L), "scores"),
    "by index": ((H, L), 1),
    "by function": ({"h": H, "deep": {"o": L}}, lambda out: out["deep"]["o"]),
    "only in training": (L, "logits"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_logits_are_found_and_replaced(name):
    output, where = OUTPUTS[name]
    assert find_logits(output, where) is L
    wide = widened(L, 3)
    replaced = replace_logits(output, where, wide)
    assert find_logits(replaced, where) is wide
    assert find_logits(output, where) is L, "the output itself is as it was"


def test_logits_that_are_made_of_an_output_cannot_be_replaced():
    output = {"h": H}
    assert replace_logits(output, lambda out: out["h"] * 2, L) is output


@pytest.mark.parametrize(
    ("output", "where", "said"),
    [
        ("text", None, "returns a str and no tensor that could be the logits"),
        ({"ids": torch.arange(3)}, None, r"returns a dict with \['ids'\] and no tensor that could"),
        ({"h": H}, "logits", r"no tensor at logits='logits'; expected .* logits= of MaskedModel"),
        ((H,), 4, "no tensor at logits=4"),
        ((H,), lambda out: None, "no tensor at logits="),
    ],
)
def test_what_has_no_logits_is_said(output, where, said):
    with pytest.raises(TypeError, match=said):
        find_logits(output, where)


def test_the_dimension_of_the_classes():
    assert class_dimension(L, torch.zeros(4).long()) == 1
    assert class_dimension(torch.zeros(4, 2, 5, 6), torch.zeros(4, 5, 6).long()) == 1
    assert class_dimension(torch.zeros(4, 5, 2), torch.zeros(4, 5).long()) == 2
    assert class_dimension(L, torch.zeros(4, 2).long()) is None, "several labels a sample"
    assert class_dimension(L, torch.zeros(4)) is None, "regression"
    assert class_dimension(L, ["a"]) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_class_without_an_output_is_wrong_and_its_loss_is_finite(dtype):
    for logits, dim, targets in (
        (L.to(dtype), 1, torch.tensor([4, 0, 1, 3])),
        (torch.randn(4, 2, 3, 3, dtype=dtype), 1, torch.full((4, 3, 3), 4)),
        (torch.full((4, 2), -3000.0, dtype=dtype), 1, torch.full((4,), 4)),
    ):
        wide = widened(logits, 5, dim)
        assert wide.shape[dim] == 5
        assert int(wide.argmax(dim).max()) < 2
        assert float(wide.narrow(dim, 2, 3).max()) <= ABSENT
        assert bool(cross_entropy(wide.float(), targets).isfinite())
    assert widened(L, 2) is L
    assert widened(torch.zeros(2, 5, 3), 4, dim=2).shape == (2, 5, 4)
