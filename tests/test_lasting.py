"""Under ``torch.inference_mode`` outputs are those of ``no_grad``, and later calls work."""

import pytest
import torch

from avalanche_supermask import CachedTensors, ImpressLearn, SupSup
from avalanche_supermask.lasting import ordinary
from avalanche_supermask.selection import selection
from tests.streams import class_stream, inputs, mlp, train_all

INFERENCE = ["given", "oneshot", "binary", "entropy", "expected_entropy", "max_logit", "entropy_descent"]


@pytest.fixture(scope="module")
def learned():
    torch.manual_seed(0)
    strategy = ImpressLearn(mlp(), n_basis=2, density=0.3, train_epochs=2, evaluator=None, seed=0)
    return train_all(strategy, class_stream(3)).model.eval()


@pytest.mark.parametrize("inference", INFERENCE)
def test_the_same_answers_in_either_mode(learned, inference):
    learned.task_inference = inference
    learned._clear_kept()
    with torch.inference_mode():
        x = inputs(6) * 1  # The inputs are created in this mode, like the batches of a loader.
        found = learned(x, 0)
    assert not learned.training
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(learned(inputs(6), 0), found)
            assert torch.equal(learned(x, 0), found), "kept from another mode"
    learned.task_inference = "given"
    z = inputs(6).requires_grad_()
    for task in range(3):
        learned(z, task).sum().backward()
    assert bool(z.grad.any())


@pytest.mark.parametrize("phase", ["weights", "coefficients"])
def test_what_a_phase_keeps_may_be_made_in_either_mode(phase):
    strategy = train_all(ImpressLearn(mlp(), n_basis=2, density=0.3, evaluator=None, seed=0), class_stream(2))
    model = strategy.model
    model.begin(2, 2)
    if phase == "coefficients":
        model.learn_coefficients()
    else:
        model.learn_scores(selection(model.masked_shapes, density=0.3))
        model.learn_weights({name: ~mask for name, mask in model.owned().items()})
    with torch.inference_mode():
        model(inputs(), 2)
    model(inputs(), 2).sum().backward()


def test_strategies_evaluate_in_it():
    strategy = SupSup(mlp(), density=0.3, plugins=[CachedTensors()], evaluator=None, seed=0, task_inference="oneshot")
    stream = class_stream(2)
    for experience in stream.train_stream:
        strategy.train(experience)
        with torch.inference_mode():
            strategy.eval(stream.test_stream[: experience.current_experience + 1])
    strategy.eval(stream.test_stream)


def test_inputs_of_any_kind_become_ordinary():
    with torch.inference_mode():
        a, b = torch.zeros(1), torch.ones(1)
    plain = torch.ones(1)
    found = ordinary({"a": a, "rest": [b, (plain,)]})
    assert not found["a"].is_inference()
    assert not found["rest"][0].is_inference()
    assert found["rest"][1][0] is plain
