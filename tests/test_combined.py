import copy

import pytest
import torch

from avalanche_supermask import SupSup
from avalanche_supermask.data.cached import load_tensors
from avalanche_supermask.inference import Combined, Entropy, ExpectedEntropy, Gaussian, MaxLogit, OneShot
from avalanche_supermask.inference.combined import _Part
from avalanche_supermask.inference.gathering import gather_statistics
from tests.streams import class_stream, inputs, mlp, train_all
from tests.test_gaussian import right

SMALL = Combined(witnesses=(Gaussian(rank=2), Entropy()))


@pytest.fixture(scope="module")
def learned():
    torch.manual_seed(0)
    stream = class_stream(3)
    strategy = SupSup(mlp(), train_epochs=2, train_mb_size=16, evaluator=None, seed=0, task_inference=SMALL)
    return train_all(strategy, stream).model.eval(), stream


def test_it_is_no_worse_than_a_witness_that_is_always_right(learned):
    model, stream = copy.deepcopy(learned[0]), learned[1]
    assert right(model, stream) > 0.95
    model.task_inference = Combined(witnesses=SMALL.witnesses, per="batch")
    assert right(model, stream) == 1.0


def test_candidates_are_each_witness_alone_and_then_mixtures():
    found = Combined().candidates
    assert torch.equal(found[:3], torch.eye(3))
    assert torch.equal(found.amax(dim=1), torch.ones(61))
    assert len(found.unique(dim=0)) == 61
    assert bool((found.sum(dim=1).diff() >= 0).all())


@pytest.mark.parametrize("best", [0, 1])
def test_the_weights_that_were_right_most_often_are_used(learned, best):
    model = copy.deepcopy(learned[0])
    for key in model.task_keys:
        stored = dict(model.subnetworks.task_statistics(key))
        stored["right"] = torch.zeros(len(SMALL.candidates))
        stored["right"][best] = 1.0
        model.store_statistics(key, stored)
    x = inputs(20)
    model(x)
    found = model.inferred_task
    model.task_inference = SMALL.witnesses[best]
    if best == 0:  # `Combined` stores the statistics of this witness under other names.
        for key, experience in enumerate(learned[1].train_stream):
            data, labels, _ = load_tensors(experience.dataset.eval(), torch.device("cpu"))
            gather_statistics(model, key, [(data, labels)])
    model(x)
    assert torch.equal(found, model.inferred_task)


def with_right(model, right, samples):
    """Return a copy with given shares of correct samples for the candidates, and a number of samples per task."""
    model = copy.deepcopy(model)
    for key in model.task_keys:
        stored = dict(model.subnetworks.task_statistics(key))
        model.store_statistics(key, {**stored, "right": torch.tensor(right), "samples": torch.tensor([samples])})
    return model


def test_of_weights_that_are_about_as_often_right_the_simplest_are_used(learned):
    right = [0.9, 0.8, *([0.7] * (len(SMALL.candidates) - 2))]
    right[2], right[4] = 0.906, 0.91
    right[3] = 0.904  # less than half of the best gain
    for samples, chosen in ((100, 0), (10**6, 2)):  # standard errors of about 0.017 and 0.0002
        model = with_right(learned[0], right, samples)
        weights, _ = SMALL._weights(model.candidates, 3)
        assert torch.equal(weights, SMALL.candidates[chosen])


def test_the_samples_that_choose_are_not_among_those_whose_statistics_are_tried(learned):
    """The reference uses the statistics of four fifths, and the costs of the held-back fifth, over two tasks."""
    model, stream = copy.deepcopy(learned[0]), learned[1]
    x, y, _ = load_tensors(stream.train_stream[1].dataset.eval(), torch.device("cpu"))
    gather_statistics(model, 1, [*zip(x.split(7), y.split(7), strict=True)])
    found = dict(model.subnetworks.task_statistics(1))
    held = torch.arange(len(x)) % 5 == 4
    assert int(found["samples"]) == int(held.sum())
    model.task_inference = SMALL.witnesses[0]
    for key in (0, 1):  # `Combined` stores the statistics of all samples of the first task.
        data, labels, _ = load_tensors(stream.train_stream[key].dataset.eval(), torch.device("cpu"))
        rows = ~held if key == 1 else torch.ones(len(data), dtype=torch.bool)
        gather_statistics(model, key, [(data[rows], labels[rows])])
    costs = SMALL.witnesses[0].costs(model.candidates, 2, x[held])
    assert float(found["right"][0]) == pytest.approx(float((costs.argmin(dim=0) == 1).float().mean()))


class _Counting:
    """The candidates of a model, with a count of how often the outputs of all tasks were computed."""

    def __init__(self, model):
        self._candidates, self.passes = model.candidates, 0

    def __getattr__(self, name):
        return getattr(self._candidates, name)

    def outputs(self, x):
        self.passes += 1
        return self._candidates.outputs(x)


@pytest.mark.parametrize(("weights", "passes"), [((1.0, 0.0, 0.0), 0), ((0.0, 1.0, 0.0), 1), ((0.25, 1.0, 1 / 64), 1)])
def test_witnesses_share_one_pass_and_those_without_weight_cost_nothing(learned, weights, passes):
    model, way, x = copy.deepcopy(learned[0]), Combined(), inputs(5)
    model.task_inference = way
    for key, experience in enumerate(learned[1].train_stream):
        data, labels, _ = load_tensors(experience.dataset.eval(), torch.device("cpu"))
        gather_statistics(model, key, [(data, labels)])
        stored = dict(model.subnetworks.task_statistics(key))
        stored["right"] = (way.candidates == torch.tensor(weights)).all(dim=1).float()
        model.store_statistics(key, stored)
    counted = _Counting(model)
    found = way.costs(counted, 3, x)
    assert counted.passes == passes
    scales = torch.stack([model.subnetworks.task_statistics(key)["scales"] for key in model.task_keys]).mean(dim=0)
    parts = [witness.costs(_Part(model.candidates, i), 3, x) for i, witness in enumerate(way.witnesses)]
    expected = sum(w * part / s for w, part, s in zip(weights, parts, scales, strict=True))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("n", [1, 3, 6])
def test_a_few_samples_are_enough(learned, n):
    model = copy.deepcopy(learned[0])
    gather_statistics(model, 2, [(inputs(n), torch.zeros(n, dtype=torch.long))])
    assert bool(model(inputs(4)).isfinite().all())


def test_its_numbers_are_counted_and_travel(learned):
    model = learned[0]
    fresh = copy.deepcopy(model)
    x = inputs(6)
    assert torch.equal(fresh(x), model(x))
    stored = model.subnetworks.task_statistics(0)
    assert {"scales", "right", "0:input.means"} <= stored.keys()
    mask_alone = sum(model.bytes_per_task(private=False).values())
    assert sum(model.bytes_per_task().values()) - mask_alone >= 3 * sum(t.nbytes for t in stored.values())


def test_a_second_pass_is_needed(learned):
    model = copy.deepcopy(learned[0])
    with pytest.raises(
        ValueError, match=r"iterated only once, and the weights .* further passes: give a list of batches"
    ):
        gather_statistics(model, 0, iter([(inputs(8), torch.zeros(8, dtype=torch.long))]))


def test_bad_settings_are_refused(learned):
    with pytest.raises(ValueError, match="two to four witnesses; got 1"):
        Combined(witnesses=(Gaussian(),))
    with pytest.raises(ValueError, match="a OneShot has no costs"):
        Combined(witnesses=(Gaussian(), OneShot()))
    model = copy.deepcopy(learned[0])
    model.task_inference = Combined(witnesses=(Gaussian(), ExpectedEntropy(), MaxLogit()))
    with pytest.raises(
        RuntimeError, match=r"has no statistics of these witnesses.*inference\.gathering\.gather_statistics"
    ):
        model(inputs(2))
