import copy
import warnings

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, class_incremental_benchmark, tensors_benchmark
from avalanche.benchmarks.scenarios.task_aware import with_task_labels
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin, LRSchedulerPlugin, SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import StepLR

from avalanche_supermask import (
    ExSSNeT,
    ExSSNeTPlugin,
    MaskedModel,
    Phase,
    SubnetworkPlugin,
    SubnetworkStrategy,
    SupSup,
    SupSupPlugin,
    Threshold,
)
from tests.streams import class_stream, inputs, mlp, outputs, train_all

QUICK = {"train_mb_size": 16, "eval_mb_size": 16, "evaluator": None, "seed": 0, "density": 0.3}


class Recorder(SupervisedPlugin):
    """Record the phase, the learning rate and the size of the optimizer's state at every iteration."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def before_forward(self, strategy, **kwargs):
        learning = "scores" if strategy.model.subnetworks.phase == "scores" else "weights"
        self.seen.append((learning, strategy.optimizer.param_groups[0]["lr"], len(strategy.optimizer.state)))


@pytest.mark.parametrize(
    ("epochs", "weight_epochs", "expected"),
    [
        (7, None, ["scores"] * 5 + ["weights"] * 2),
        (3, None, ["scores"] * 2 + ["weights"]),
        (2, None, ["scores"] * 2),
        (5, 1, ["scores"] * 4 + ["weights"]),
        (2, 0, ["scores"] * 2),
        (2, 2, ["weights"] * 2),
        (1, None, ["scores"]),
    ],
)
def test_phases_follow_the_epochs(epochs, weight_epochs, expected):
    recorder = Recorder()
    generator = torch.Generator().manual_seed(0)
    strategy = ExSSNeT(mlp(), train_epochs=epochs, weight_epochs=weight_epochs, plugins=[recorder], **QUICK)
    # With random labels, something is left to learn, so that the default has a weight phase.
    tasks = [(torch.randn(48, 1, 6, 6, generator=generator), torch.arange(48) % 2) for _ in range(2)]
    train_all(strategy, tensors_benchmark(train_tensors=tasks, test_tensors=tasks, task_labels=[0, 1]))
    per_epoch = [learning for learning, _, _ in recorder.seen][::3]  # There are 48 samples in batches of 16.
    assert per_epoch == expected * 2


def test_phases_that_do_not_fit():
    with pytest.raises(ValueError, match="expected 0 to 3, got 4; choose it within this range"):
        ExSSNeT(mlp(), train_epochs=3, weight_epochs=4, **QUICK)


def test_no_epochs():
    strategy = SupSup(mlp(), train_epochs=1, **QUICK)
    strategy.train_epochs = 0
    with pytest.raises(ValueError, match="train_epochs must be at least 1 to learn a task; got 0"):
        strategy.train(class_stream(1).train_stream[0])


def test_learning_rates_per_phase_and_the_optimizer_as_it_was():
    net, recorder = mlp(), Recorder()
    optimizer = SGD(net.parameters(), lr=0.5, momentum=0.9)
    strategy = ExSSNeT(
        net, optimizer=optimizer, train_epochs=2, weight_epochs=1, mask_lr=0.1, plugins=[recorder], **QUICK
    )
    train_all(strategy, class_stream(1))
    assert [lr for _, lr, _ in recorder.seen] == [0.1] * 3 + [0.5] * 3
    assert strategy.optimizer is optimizer
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert recorder.seen[3][2] == 0, "momentum of the scores would move the weights"


def test_cosine_starts_full_and_falls_within_each_phase():
    recorder = Recorder()
    rates = {"mask_lr": 1e-2, "weight_lr": 0.5}
    strategy = ExSSNeT(mlp(), train_epochs=4, weight_epochs=2, plugins=[recorder], **rates, **QUICK)
    train_all(strategy, class_stream(1))
    rates = [lr for _, lr, _ in recorder.seen]
    assert rates[0] == 1e-2
    assert rates[6] == 0.5
    assert rates[:6] == sorted(rates[:6], reverse=True)
    assert rates[5] < 0.1 * rates[0]


def test_the_callers_groups_stay_and_scores_join_their_weights():
    net = mlp()
    groups = [{"params": net[1].parameters(), "lr": 0.1}, {"params": net[3:].parameters(), "lr": 0.2}]
    strategy = SupSup(net, optimizer=AdamW(groups, weight_decay=0.1), train_epochs=1, **QUICK)
    train_all(strategy, class_stream(2))
    first, second = strategy.optimizer.param_groups
    scores = strategy.model.subnetworks.scores
    assert any(p is scores["1.weight"] for p in first["params"])
    assert any(p is scores["5.weight"] for p in second["params"])
    assert (first["lr"], second["lr"]) == (0.1, 0.2)
    held = [id(p) for group in strategy.optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted({id(p) for p in strategy.model.parameters()})


def test_a_scheduler_plugin_drives_the_optimizer():
    net, recorder = mlp(), Recorder()
    optimizer = SGD(net.parameters(), lr=1.0)
    scheduler = LRSchedulerPlugin(StepLR(optimizer, 1, gamma=0.5))
    strategy = SupSup(net, optimizer=optimizer, plugins=[scheduler, recorder], train_epochs=3, **QUICK)
    train_all(strategy, class_stream(1))
    assert [lr for _, lr, _ in recorder.seen] == [1.0] * 3 + [0.5] * 3 + [0.25] * 3


def test_as_a_plugin_of_another_template():
    net = MaskedModel(mlp(), seed=0)
    strategy = SupervisedTemplate(
        model=net, optimizer=SGD(net.parameters(), lr=0.1), train_epochs=2, train_mb_size=16,
        plugins=[ExSSNeTPlugin(density=0.3)], evaluator=None,
    )  # fmt: skip
    train_all(strategy, class_stream(2))
    assert strategy.model.task_keys == [0, 1]


def test_a_model_that_is_not_wrapped():
    net = mlp()
    plugins = [SupSupPlugin()]
    strategy = SupervisedTemplate(model=net, optimizer=SGD(net.parameters(), lr=0.1), plugins=plugins, evaluator=None)
    with pytest.raises(TypeError, match=r"the strategy's model is a Sequential; expected a MaskedModel"):
        strategy.train(class_stream(1).train_stream[0])


def test_the_model_may_come_first_without_a_warning_and_typos_are_caught():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="No loggers")
        SupSup(mlp(), evaluator=None)
    with pytest.raises(TypeError, match="densty"):
        SupSup(mlp(), densty=0.1, evaluator=None)
    with pytest.raises(ValueError, match=r"already a MaskedModel .*pass MaskedModel\(net, seed=3\)"):
        SupSup(MaskedModel(mlp()), seed=3, evaluator=None)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"density": 0.0}, r"in \(0, 1\], 'auto' or None; got 0.0"),
        ({"density": 2}, r"in \(0, 1\], 'auto' or None; got 2"),
        ({"layer_densities": "er"}, "'uniform', 'erdos_renyi' or None; got 'er'"),
        ({"task_key": "label"}, "'auto', 'task_label' or 'experience'; got 'label'"),
        ({"schedule": "linear"}, "'constant', 'cosine' or None; got 'linear'"),
        ({"transfer": "mean"}, "'none', 'scores' or 'masks'; got 'mean'"),
    ],
)
def test_unknown_options(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        SupSup(mlp(), evaluator=None, **arguments)


# ---------------------------------------------------------------------- task keys


@pytest.mark.filterwarnings("ignore:task label")
def test_without_distinct_labels_the_experience_names_the_task():
    strategy = SupSup(mlp(), train_epochs=1, **QUICK)
    stream = class_stream(3, task_labels=[0, 0, 0])
    train_all(strategy, stream)
    assert strategy.model.task_keys == [0, 1, 2]
    strategy.eval(stream.test_stream)


def test_task_key_experience_also_answers_at_evaluation():
    stream = class_stream(3, task_labels=[0, 0, 0], n=96)
    strategy = SupSup(mlp(64), task_key="experience", train_epochs=20, mask_lr=0.02, **(QUICK | {"evaluator": None}))
    train_all(strategy, stream)
    recorded = []

    class Outputs(SupervisedPlugin):
        def after_eval_iteration(self, strategy, **kwargs):
            recorded.append((strategy.mb_output.argmax(1) == strategy.mb_y).float().mean().item())

    strategy.plugins.append(Outputs())
    strategy.eval(stream.test_stream)
    assert sum(recorded) / len(recorded) > 0.9
    assert strategy.model.router.assigned is None


def test_streams_of_the_new_interface_without_labels():
    data = torch.utils.data.TensorDataset(torch.randn(40, 1, 6, 6), torch.arange(40) % 4)
    data.targets = data.tensors[1].tolist()
    data = as_classification_dataset(data)
    stream = class_incremental_benchmark({"train": data, "test": data}, num_experiences=2, seed=0)
    strategy = SupSup(mlp(outputs=4), train_epochs=1, **QUICK)
    train_all(strategy, stream)
    assert strategy.model.task_keys == [0, 1]
    with pytest.warns(UserWarning, match="the evaluated experience has no task labels .*the latest task answers"):
        strategy.eval(stream.test_stream)


def test_a_revisited_task_is_an_error_and_the_model_goes_on():
    stream = class_stream(2)
    strategy = SupSup(mlp(), train_epochs=1, **QUICK)
    train_all(strategy, stream)
    before = outputs(strategy.model, inputs(), 0)
    with pytest.raises(ValueError, match=r"task 0 is learned already.*on_revisit='skip'.*'new'.*'continue'"):
        strategy.train(stream.train_stream[0])
    assert torch.equal(outputs(strategy.model, inputs(), 0), before)


def test_two_tasks_in_one_experience():
    dataset = class_stream(2)
    mixed = dataset.train_stream[0].dataset.concat(dataset.train_stream[1].dataset)
    stream = benchmark_from_datasets(train=[mixed])
    experience = stream.train_stream[0]
    experience.task_labels = [0, 1]
    with pytest.raises(ValueError, match=r"experience 0 mixes the task labels \[0, 1\]"):
        SupSup(mlp(), train_epochs=1, **QUICK).train(experience)


def test_every_sample_of_an_experience_with_several_labels_trains_its_task():
    stream, active = class_stream(4), []

    class Routes(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            model = strategy.model
            found = {model.router.resolve(label, model.subnetworks) for label in strategy.mb_task_id.tolist()}
            active.append((model.active, found))

    strategy = SupSup(mlp(), train_epochs=1, task_key="experience", plugins=[Routes()], **QUICK)
    parts = [experience.dataset for experience in stream.train_stream]
    mixed = [parts[0], parts[1].concat(parts[2]), parts[0].concat(parts[1]).concat(parts[2]), parts[3].concat(parts[1])]
    for experience in with_task_labels(benchmark_from_datasets(train=mixed)).train_stream:
        strategy.train(experience)
    assert strategy.model.task_keys == [0, 1, 2, 3]
    assert all(found == {key} for key, found in active)


def test_too_few_outputs():
    strategy = SupSup(mlp(outputs=2), train_epochs=1, **QUICK)
    with pytest.raises(ValueError, match=r"2 outputs, but experience 0 has label 3: give it 4 outputs$"):
        strategy.train(class_stream(1, n_classes=4).train_stream[0])
    x = inputs(32)
    late = tensors_benchmark([(x, 2 + torch.arange(32) % 2)], [(x, torch.arange(32) % 2)], task_labels=[0])
    with pytest.raises(
        ValueError, match=r"label 3: give it 4 outputs, or, as the experience has only 2 classes, number them from 0"
    ):
        strategy.train(late.train_stream[0])
    assert strategy.model.task_keys == []


# ---------------------------------------------------------------------- training that ends early


class StopAt(SupervisedPlugin):
    def __init__(self, iteration):
        super().__init__()
        self.iteration = iteration

    def after_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_iterations + 1 == self.iteration:  # The clock is updated after the plugins.
            strategy.stop_training()


@pytest.mark.parametrize("iteration", [1, 4, 6])
def test_a_task_is_stored_from_whatever_phase_it_stops_in(iteration):
    strategy = ExSSNeT(mlp(), train_epochs=2, weight_epochs=1, plugins=[StopAt(iteration)], **QUICK)
    strategy.train(class_stream(1).train_stream[0])
    assert strategy.model.task_keys == [0]


def test_a_task_that_was_never_trained_is_not_stored():
    strategy = ExSSNeT(mlp(), train_epochs=2, weight_epochs=1, plugins=[StopAt(6)], **QUICK)
    said = r"task 1 was trained for 0 iterations and is not stored.*stop_training\(\).*once for each experience"
    with pytest.warns(UserWarning, match=said):
        strategy.train(class_stream(2).train_stream)  # Avalanche skips the whole next experience.
    assert strategy.model.task_keys == [0]
    strategy.train(class_stream(2).train_stream[1])
    assert strategy.model.task_keys == [0, 1]


def test_training_within_a_training_is_refused_and_the_inner_task_stays():
    stream = class_stream(2).train_stream

    others = [stream[1]]

    class Nested(SupervisedPlugin):
        def after_training_exp(self, strategy, **kwargs):
            if others:
                strategy.train(others.pop())

    strategy = SupSup(mlp(), plugins=[Nested()], **QUICK)
    with pytest.raises(RuntimeError, match=r"the experience has no task at its end.*call train\(\) after it"):
        strategy.train(stream[0])
    assert strategy.model.task_keys == [1]
    strategy.train(stream[0])
    assert strategy.model.task_keys == [1, 0]


@pytest.mark.filterwarnings("ignore:Metric Top1_Acc_Stream", "ignore:task label 1")
def test_early_stopping_plugin():
    stream = class_stream(2)
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[])
    stopper = EarlyStoppingPlugin(patience=1, val_stream_name="train_stream")
    settings = QUICK | {"evaluator": evaluator}
    strategy = ExSSNeT(mlp(), train_epochs=4, plugins=[stopper], eval_every=1, **settings)
    x = inputs()
    strategy.train(stream.train_stream[0])
    before = outputs(strategy.model, x, 0)
    strategy.train(stream.train_stream[1])
    assert torch.equal(outputs(strategy.model, x, 0), before)


def test_an_interrupted_task_can_be_learned_again():
    class Interrupt(SupervisedPlugin):
        armed = True

        def after_training_iteration(self, strategy, **kwargs):
            if self.armed and strategy.clock.train_iterations == 5:
                raise KeyboardInterrupt

    stream, interrupt = class_stream(2), Interrupt()
    strategy = ExSSNeT(mlp(), train_epochs=2, weight_epochs=1, plugins=[interrupt], **QUICK)
    with pytest.raises(KeyboardInterrupt):
        strategy.train(stream.train_stream[0])
    interrupt.armed = False
    train_all(strategy, stream)
    assert strategy.model.task_keys == [0, 1]


def test_copies_stay_frozen_under_further_training():
    strategy = ExSSNeT(mlp(), train_epochs=2, weight_epochs=1, **QUICK)
    stream = class_stream(3)
    strategy.train(stream.train_stream[0])
    clone = copy.deepcopy(strategy.model)
    before = outputs(clone, inputs(), 0)
    other = ExSSNeT(clone, train_epochs=2, weight_epochs=1, **{k: v for k, v in QUICK.items() if k != "seed"})
    other.train(stream.train_stream[1])
    assert torch.equal(outputs(other.model, inputs(), 0), before)
    assert strategy.model.task_keys == [0]


class Careless(SubnetworkPlugin):
    """A method that tries to train weights of earlier tasks."""

    def __init__(self, marks, phases=lambda epochs: [Phase("all", epochs)]):
        super().__init__()
        self.marks, self.lengths = marks, phases

    def phases(self, epochs):
        return self.lengths(epochs)

    def enter_phase(self, phase, model):
        everything = {name: torch.ones(shape, dtype=torch.bool) for name, shape in model.masked_shapes.items()}
        self.marks(model, everything)


def careless(marks, **options):
    return SubnetworkStrategy(
        model=mlp(), method=Careless(marks, **options), optimizer=None, default_lr=1e-2, train_epochs=2, evaluator=None
    )


@pytest.mark.parametrize(
    "marks",
    [
        lambda model, all_: model.learn_weights(all_, mask=all_),
        lambda model, all_: model.learn_scores(Threshold(), trainable=all_),
    ],
)
def test_a_method_cannot_train_what_a_finished_task_owns(marks):
    strategy = careless(marks)
    stream = class_stream(2)
    strategy.train(stream.train_stream[0])
    before = outputs(strategy.model, inputs(), 0)
    with pytest.raises(ValueError, match=r"entries of '1.weight' that shall learn belong to finished tasks.*overwrite"):
        strategy.train(stream.train_stream[1])
    assert torch.equal(outputs(strategy.model, inputs(), 0), before)


def test_only_a_control_may_overwrite():
    strategy = careless(lambda model, all_: model.learn_weights(all_, mask=all_, overwrite=True))
    stream = class_stream(2)
    strategy.train(stream.train_stream[0])
    before = outputs(strategy.model, inputs(), 0)
    strategy.train(stream.train_stream[1])
    assert not torch.equal(outputs(strategy.model, inputs(), 0), before)


@pytest.mark.parametrize(
    ("marks", "error", "complaint"),
    [
        (lambda all_: {n: m.float() for n, m in all_.items()}, TypeError, "must be a bool tensor; got torch.float32"),
        (
            lambda all_: {n: m[:1] for n, m in all_.items()},
            ValueError,
            r"must have the shape \(24, 36\); got \(1, 36\)",
        ),
        (lambda all_: {}, ValueError, "needs one entry per masked weight.*wrong or missing"),
    ],
)
def test_marks_that_are_no_marks(marks, error, complaint):
    strategy = careless(lambda model, all_: model.learn_weights(all_, mask=marks(all_)))
    with pytest.raises(error, match=complaint):
        strategy.train(class_stream(1).train_stream[0])


@pytest.mark.parametrize(
    ("phases", "complaint"),
    [
        (lambda epochs: [], "must return at least one Phase"),
        (lambda epochs: [Phase("all", epochs - 1)], r"must fill 2 epochs; got {'all': 1}"),
        (lambda epochs: [Phase("a", epochs + 1), Phase("b", -1)], "must fill 2 epochs"),
    ],
)
def test_phases_that_do_not_fill_the_epochs(phases, complaint):
    strategy = careless(lambda model, all_: model.learn_weights(all_, mask=all_), phases=phases)
    with pytest.raises(ValueError, match=complaint):
        strategy.train(class_stream(1).train_stream[0])


def test_hooks_that_a_method_must_fill_in():
    strategy = SubnetworkStrategy(
        model=mlp(), method=SubnetworkPlugin(), optimizer=None, default_lr=1e-2, train_epochs=1, evaluator=None
    )
    with pytest.raises(NotImplementedError, match=r"SubnetworkPlugin has no phases\(\)"):
        strategy.train(class_stream(1).train_stream[0])


def test_the_end_of_a_task_is_told_before_and_after_the_commit():
    told = []

    class Told(SupSupPlugin):
        def end_task(self, strategy, model):
            told.append(("end", model.active, list(model.task_keys)))

        def task_committed(self, strategy, model, key):
            told.append(("committed", key, list(model.task_keys)))

    strategy = SubnetworkStrategy(
        model=mlp(), method=Told(), optimizer=None, default_lr=1e-2, train_epochs=1, evaluator=None
    )
    train_all(strategy, class_stream(2))
    assert told == [("end", 0, []), ("committed", 0, [0]), ("end", 1, [0]), ("committed", 1, [0, 1])]


def test_parameter_groups_work_without_a_prepare_of_ones_own():
    class Scores(SubnetworkPlugin):
        def phases(self, epochs):
            return [Phase("mask", epochs)]

        def enter_phase(self, phase, model):
            model.learn_scores(Threshold())

    net = mlp()
    groups = [{"params": net[1].parameters(), "lr": 0.1}, {"params": [*net[3].parameters(), *net[5].parameters()]}]
    strategy = SubnetworkStrategy(
        model=net, method=Scores(), optimizer=SGD(groups, lr=0.01), default_lr=1e-2, train_epochs=1, evaluator=None
    )
    train_all(strategy, class_stream(2))
    assert [len(group["params"]) for group in strategy.optimizer.param_groups] == [3, 6]
