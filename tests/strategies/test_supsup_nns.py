"""SupSupNNs finds tasks in a stream without task labels and boundaries."""

import copy

import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from torch import nn
from torch.optim import SGD

from avalanche_supermask import CachedTensors, SupSupNNs, save
from tests.building import same_state

SIZE, CLASSES, BATCHES, BATCH = 36, 4, 60, 32


def prototypes(task):
    return 2 * torch.randn((CLASSES, SIZE), generator=torch.Generator().manual_seed(task))


def samples(task, n, seed):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, CLASSES, (n,), generator=generator)
    return prototypes(task)[y] + 0.5 * torch.randn((n, SIZE), generator=generator), y


def experiences(tasks, *, batches=BATCHES):
    """Return one experience per entry of ``tasks``, without task labels."""
    splits = [samples(task, batches * BATCH, 10 + i) for i, task in enumerate(tasks)]
    return tensors_benchmark(train_tensors=splits, test_tensors=splits, task_labels=[0] * len(splits)).train_stream


def strategy(**options):
    net = nn.Sequential(nn.Linear(SIZE, 128), nn.ReLU(), nn.Linear(128, 64))
    settings = {"density": 0.3, "mask_lr": 0.02, "check_every": 10, "train_mb_size": BATCH, "evaluator": None}
    return SupSupNNs(net, plugins=[CachedTensors()], seed=0, **{**settings, **options})


def learn(found, tasks, **options):
    for experience in experiences(tasks, **options):
        found.train(experience)
    return found


@torch.no_grad()
def answer(model, x):
    return model.forward_task(0, x).clone()


def opened(found):
    return [
        look.batch for i, look in enumerate(found.method.looks) if i == 0 or look.task != found.method.looks[i - 1].task
    ]


@pytest.mark.parametrize(("mask_lr", "expected"), [(0.02, 0.02), (None, 0.5)])
def test_a_given_rate_is_that_of_the_callers_optimizer_too(mask_lr, expected):
    net = nn.Sequential(nn.Linear(SIZE, 8), nn.Linear(8, CLASSES))
    found = SupSupNNs(
        net, optimizer=SGD(net.parameters(), lr=0.5), mask_lr=mask_lr, seed=0, train_mb_size=BATCH, evaluator=None
    )
    found.train(experiences([0], batches=2)[0])
    assert [group["lr"] for group in found.optimizer.param_groups] == [expected]
    assert found.method.settings_used["mask_lr"] == expected


def test_every_task_is_found_where_it_begins():
    found = learn(strategy(), [0, 1, 2])
    assert found.found_tasks == [0, 1, 2]
    assert opened(found) == [0, BATCHES, 2 * BATCHES]
    found.finish()
    model = found.model.eval()
    for task in range(3):
        x, y = samples(task, 64, 99)
        with torch.no_grad():
            assert (model(x).argmax(1) == y).float().mean() > 0.9
        assert set(model.inferred_task.tolist()) == {task}


def test_the_length_of_experiences_means_nothing():
    whole, parts = learn(strategy(), [0, 1]), strategy()
    for experience in experiences([0, 0, 0, 1, 1, 1], batches=BATCHES // 3):
        parts.train(experience)
    assert len(parts.found_tasks) == len(whole.found_tasks) == 2
    assert opened(parts) == opened(whole)


def test_a_task_that_comes_back_is_answered_and_keeps_every_bit():
    found = learn(strategy(), [0, 1])
    x, _ = samples(0, 32, 99)
    before = answer(found.model, x)
    learn(found, [0])
    assert found.found_tasks == [0, 1]
    assert found.method.looks[-1].task == 0
    assert found.model.active is None
    assert torch.equal(answer(found.model, x), before)
    learn(found, [1])
    assert found.found_tasks == [0, 1]
    assert found.method.looks[-1].task == 1, "the mask that fits, and not just the first one"
    learn(found, [2])
    assert found.found_tasks == [0, 1, 2]


def test_checks_come_every_few_batches_and_a_mask_fits_within_the_tolerance():
    found = learn(strategy(check_every=4, tolerance=0.25), [0], batches=13)
    assert [look.batch for look in found.method.looks] == [0, 4, 8, 12]
    found.method._own[0] = 0.5
    assert found.method._knows(0, 0.74)
    assert not found.method._knows(0, 0.76)


def test_a_full_budget_lets_the_nearest_mask_answer():
    found = learn(strategy(max_tasks=2), [0, 1, 2])
    assert len(found.found_tasks) == 2
    assert found.method.looks[-1].task in (0, 1)


def test_a_mask_that_is_like_an_earlier_one_is_merged_into_it():
    apart = learn(strategy(merge_above=0.99), [0, 1, 2])
    assert apart.found_tasks == [0, 1, 2]
    merged = learn(strategy(merge_above=0.01), [0, 1, 2])
    merged.finish()
    assert merged.found_tasks == [0]


def test_evaluation_in_between_changes_nothing():
    torch.manual_seed(0)
    plain = learn(strategy(), [0, 1])
    torch.manual_seed(0)
    watched = strategy()
    for experience in experiences([0, 1]):
        watched.train(experience)
        scores = copy.deepcopy(dict(watched.model.subnetworks.scores))
        watched.eval([experience])
        assert watched.model.active is not None
        assert same_state(dict(watched.model.subnetworks.scores), scores)
    for found in (plain, watched):
        found.finish()
    assert plain.found_tasks == watched.found_tasks == [0, 1]
    for key in plain.found_tasks:
        assert same_state(plain.model.subnetworks.task_mask(key), watched.model.subnetworks.task_mask(key))


def test_the_papers_criterion_runs_and_asks_the_gradient_every_time():
    found = learn(strategy(detect="gradient", density=None), [0, 1])
    assert all(look.evidence is not None for look in found.method.looks[1:])
    assert found.found_tasks


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"detect": "loss"}, "detect must be 'entropy' or 'gradient'; got 'loss'"),
        ({"check_every": 0}, "check_every must be a whole number of at least 1; got 0"),
        ({"max_tasks": 0}, "max_tasks must be a whole number of at least 1; got 0"),
        ({"epsilon": 0.0}, "epsilon must be a number above 0; got 0.0"),
    ],
)
def test_impossible_options(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        strategy(**options)


def test_one_warning_tells_that_no_check_was_made():
    found, told = strategy(check_every=40), "2 experiences had 24 batches in all, and the first check .* check_every=40"
    learn(found, [0], batches=12)
    found.finish()  # a single experience may be shorter than the distance of two checks
    found = learn(strategy(check_every=40), [0, 1], batches=12)
    with pytest.warns(UserWarning, match=told):
        found.eval(experiences([0], batches=1))
    found.eval(experiences([0], batches=1))
    found = learn(strategy(check_every=40), [0, 1], batches=12)
    with pytest.warns(UserWarning, match=told):
        found.finish()
    learn(strategy(check_every=11), [0, 1], batches=12).finish()


def test_errors_tell_that_the_mask_in_training_is_not_finished(tmp_path):
    found = learn(strategy(), [0], batches=4)
    for use in (found.model.export, found.model.forget, found.model.task_mask):
        with pytest.raises(KeyError, match=r"task 0 is being learned, and is stored .* by strategy\.finish\(\)"):
            use(0)
    with pytest.raises(ValueError, match=r"with SupSupNNs, call strategy\.finish\(\) first"):
        save(found.model, tmp_path / "tasks.safetensors")
    found.finish()
    assert found.model.task_keys == [0]
    save(found.model, tmp_path / "tasks.safetensors")


@pytest.mark.parametrize(
    ("batches", "error"), [(1, "the loss of task 0 is NaN or infinite"), (4, "scores contain NaN, as the training")]
)
def test_after_a_loss_that_was_not_a_number_a_new_mask_learns(batches, error):
    found = strategy()
    good = found._criterion
    found._criterion = lambda output, target: good(output, target) * float("nan")
    with pytest.raises((FloatingPointError, ValueError), match=error):
        learn(found, [0], batches=batches)
    found._criterion = good
    learn(found, [0])
    x, y = samples(0, 200, 1)
    assert found.found_tasks == [0]
    assert (found.model.eval()(x).argmax(1) == y).float().mean() > 0.9
