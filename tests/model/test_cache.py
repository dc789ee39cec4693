"""The most recently used tensors are kept within the bound, and a model uses them only while they are valid."""

import torch

from avalanche_supermask import MaskedModel
from avalanche_supermask.model.cache import Recent, TaskTensors
from tests.building import learn_nothing
from tests.streams import inputs, mlp, outputs


def test_the_longest_unused_goes_first():
    made = []

    def make(key):
        return lambda: made.append(key) or TaskTensors({"w": torch.full((4,), float(key))})

    recent = Recent(max_bytes=3 * 16)
    for key in (0, 1, 2, 0, 3, 0, 2, 1):
        assert recent.get(key, make(key)).tensors["w"][0] == key
        assert len(recent) <= 3
    assert made == [0, 1, 2, 3, 1]
    recent.clear()
    assert len(recent) == 0


def test_one_is_kept_whatever_its_size():
    recent = Recent(max_bytes=1)
    first = recent.get(0, lambda: TaskTensors({"w": torch.zeros(9)}))
    assert recent.get(0, lambda: TaskTensors({})) is first


def test_a_model_keeps_no_answer_that_is_no_longer_true():
    model = MaskedModel(mlp(), seed=0)
    for key in range(3):
        learn_nothing(model, key)
    x = inputs()
    before = [outputs(model, x, key) for key in range(3)]
    assert len(model._recent) == 3
    model.forget(1)
    learn_nothing(model, 1)
    assert torch.equal(outputs(model, x, 0), before[0])
    assert not torch.equal(outputs(model, x, 1), before[1])
    other = MaskedModel(mlp(), seed=5)
    for key in range(3):
        learn_nothing(other, key)
    outputs(other, x, 0)
    other.load_state_dict(model.state_dict())
    assert torch.equal(outputs(other, x, 0), before[0])


def test_a_call_gets_copies_of_what_it_may_move_and_one_of_what_is_tied():
    counter, mean, weight = torch.zeros(1), torch.zeros(1), torch.zeros(1)
    tensors = {"a.counter": counter, "b.counter": counter, "mean": mean, "weight": weight}
    kept = TaskTensors(tensors, trained=frozenset(tensors) - {"weight"}, counted=frozenset({"a.counter", "b.counter"}))
    given = kept.for_call(training=False)
    assert given["a.counter"] is given["b.counter"] is not counter
    assert given["mean"] is mean
    given = kept.for_call(training=True)
    assert given["mean"] is not mean
    assert given["weight"] is weight
