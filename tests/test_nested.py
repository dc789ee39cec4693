"""Batches of any form are read, split and joined in the same way."""

from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from avalanche_supermask import nested

Pair = namedtuple("Pair", "a b")


@dataclass(frozen=True)
class Held:
    a: Any
    b: Any = None


class Encoding(UserDict):
    """A mapping that is not a dict, as tokenizers return it."""


X = torch.arange(12.0).reshape(6, 2)
CONTAINERS = {
    "dict": {"a": X, "b": -X},
    "ordered": OrderedDict(a=X, b=-X),
    "default": defaultdict(list, a=X, b=-X),
    "user": Encoding(a=X, b=-X),
    "tuple": (X, -X),
    "list": [X, -X],
    "named": Pair(X, -X),
    "dataclass": Held(X, -X),
    "deep": {"a": [X, {"b": (-X,)}]},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_rows_split_and_joined_agree(name):
    x = CONTAINERS[name]
    assert nested.batch_size(x) == 6
    index = torch.tensor([4, 0, 0])
    taken = nested.rows(x, index)
    assert type(taken) is type(x)
    assert all(torch.equal(t, s) for t, s in zip(nested.tensors(taken), (X[index], -X[index]), strict=True))
    for parts in (nested.split(x, 4), nested.split(x, [1, 0, 5])):
        whole = nested.concatenated([p for p in parts if nested.batch_size(p)])
        assert type(whole) is type(x)
        assert all(torch.equal(t, s) for t, s in zip(nested.tensors(whole), (X, -X), strict=True))
    assert torch.equal(next(nested.tensors(x)), X), "nothing changes in place"


def test_transformers_containers():
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_outputs import SequenceClassifierOutput

    encoding = transformers.BatchEncoding({"input_ids": X, "attention_mask": -X})
    taken = nested.rows(encoding, slice(2, 4))
    assert isinstance(taken, transformers.BatchEncoding)
    assert torch.equal(taken["input_ids"], X[2:4])
    outputs = [SequenceClassifierOutput(loss=torch.tensor(v), logits=X[s], hidden_states=(X[s],)) for v, s in
               ((1.0, slice(0, 2)), (4.0, slice(2, 6)))]  # fmt: skip
    joined = nested.joined(outputs, [2, 4])
    assert isinstance(joined, SequenceClassifierOutput)
    assert torch.equal(joined.logits, X)
    assert torch.equal(joined["hidden_states"][0], X)
    assert joined.loss == 3.0, "the mean over the samples"
    assert joined.attentions is None


def test_what_is_no_column_belongs_to_every_sample():
    shared = torch.ones(3)
    x = {"x": X, "positions": shared, "texts": list("abcdef"), "scale": 2.0, "none": None}
    taken = nested.rows(x, torch.tensor([5, 1]))
    assert taken["positions"] is shared
    assert taken["texts"] == ["f", "b"]
    assert (taken["scale"], taken["none"]) == (2.0, None)
    whole = nested.joined(nested.split({"x": X, "texts": list("abcdef"), "kind": "t"}, 3), [3, 3])
    assert whole["texts"] == list("abcdef")
    assert whole["kind"] == "t"


def test_a_mapping_that_cannot_be_written_becomes_a_dict():
    assert nested.rows(MappingProxyType({"a": X}), slice(1))["a"].shape == (1, 2)


def test_widths_are_filled_up():
    joined = nested.joined([(X, X[:, :1]), (X, X)], [6, 6], fill=-9.0)
    assert joined[1].shape == (12, 2)
    assert torch.equal(joined[1][:6, 1], torch.full((6,), -9.0))
    maps = nested.joined([torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 3, 3)], [1, 1], fill=-9.0)
    assert maps.shape == (2, 4, 3, 3)
    assert float(maps[0, 2:].max()) == -9.0


def test_moved_reaches_everything_and_leaves_the_rest():
    packed = pack_sequence([torch.zeros(3, 2), torch.zeros(1, 2)])
    x = nested.moved({"a": X, "b": [X, None], "p": packed, "t": "text"}, "meta")
    assert {t.device.type for t in nested.tensors(x)} == {"meta"}
    assert x["p"].data.device.type == "meta"
    assert x["t"] == "text"


@pytest.mark.parametrize(
    ("act", "error", "said"),
    [
        (lambda: nested.batch_size({"a": None}), TypeError, "expected a batch of tensors.*got dict without one"),
        (lambda: nested.batch_size("text"), TypeError, "got str without one"),
        (
            lambda: nested.rows({"a": X}, slice(1), n=5),
            ValueError,
            "a batch of 5 samples; got a dict, in which nothing",
        ),
        (lambda: nested.rows({"a": X, "p": pack_sequence([X])}, slice(1)), TypeError, "pack the sequences inside"),
        (lambda: nested.joined([{"a": X}, {"b": X}], [6, 6]), ValueError, r"dict of \['a'\] beside a dict of \['b'\]"),
        (lambda: nested.joined([(X,), (X, X)], [6, 6]), ValueError, "a tuple of 1 beside a tuple of 2; give one task"),
        (lambda: nested.joined([X, X.T], [6, 2]), ValueError, r"\(6, 2\), \(2, 6\); give one task"),
        (lambda: nested.joined([X, X], [6, 5]), ValueError, r"\(6, 2\) does not have one row for each of 5"),
        (lambda: nested.joined(["a", "b"], [1, 1]), ValueError, "do not fit together: one has 'a', another 'b'; give"),
    ],
)
def test_what_cannot_be_done_is_said(act, error, said):
    with pytest.raises(error, match=said):
        act()


def test_an_object_without_rows_is_named_with_what_to_do():
    class DynamicCache:
        """Like the cache of a Hugging Face decoder."""

    parts = [{"logits": X, "past": DynamicCache()} for _ in range(2)]
    with pytest.raises(ValueError, match=r"a DynamicCache cannot be joined .*leave it out .*config\.use_cache=False"):
        nested.joined(parts, [6, 6])
