"""The checks of the contract, and the functions that run them."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avalanche_supermask.data.cached import CachedTensors
from avalanche_supermask.saving.checkpoint import maybe_load_checkpoint, save_checkpoint
from avalanche_supermask.testing.problems import NETWORKS, OPTIMIZERS, SHAPE, small_stream

__all__ = ["check_method", "contract"]

Check = Callable[[], None]


def check_method(method: Callable[..., Any], *, tasks: int = 8, **arguments: Any) -> None:
    """Run all checks of the contract, and return if all of them pass.

    Args:
        method: a strategy class whose model is a `MaskedModel`. It is called as
            ``method(model, optimizer=..., train_epochs=..., **arguments)``. A class with ``forgets = True`` is a
            control, which must change old tasks. A class with ``any_module = False`` may refuse a network with a
            ``ValueError``.
        tasks: number of tasks in the check that old tasks do not change (default 8).
        arguments: arguments for the constructor of the method.

    Raises:
        AssertionError: a check failed. The message contains the name of the check and the reason of the failure.

    Example:
        >>> from avalanche_supermask import SupSup
        >>> check_method(SupSup, tasks=2, density=0.3)
    """
    for name, check in contract(method, tasks=tasks, **arguments):
        try:
            check()
        except AssertionError as failure:
            raise AssertionError(f"{getattr(method, '__name__', method)} fails {name!r}: {failure}") from failure


def contract(method: Callable[..., Any], *, tasks: int = 8, **arguments: Any) -> list[tuple[str, Check]]:
    """Return the checks of `check_method` with their names, so that they can be run one by one.

    Args:
        method: a strategy class (see `check_method`).
        tasks: number of tasks in the check that old tasks do not change (default 8).
        arguments: arguments for the constructor of the method.
    """
    subject = _Subject(method, arguments)
    checks: list[tuple[str, Check]] = [
        (
            f"finished tasks stay bit-identical: {network}, {optimizer}",
            partial(subject.stays, network, optimizer, tasks),
        )
        for network in NETWORKS
        for optimizer in OPTIMIZERS
    ]
    return [
        *checks,
        ("what learns does not grow with the number of tasks", subject.parameters_stay),
        ("evaluation changes nothing", subject.evaluation_changes_nothing),
        ("a copy, a reload and an export give the same outputs", subject.copies_answer_alike),
        ("a resumed run equals the uninterrupted one", subject.resumes),
        ("a mixed batch equals batches of one task", subject.mixed_batches),
        ("the same seed gives the same outputs", subject.is_deterministic),
        ("the caller keeps what was passed", subject.leaves_arguments_alone),
        ("a task that comes again can be skipped", subject.skips),
        ("it learns", subject.learns),
    ]


class _Subject:
    """A method that is checked."""

    def __init__(self, method: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        self.method, self.arguments = method, arguments
        self.forgets = bool(getattr(method, "forgets", False))

    def build(self, network: str = "mlp", optimizer: str = "default", **more: Any) -> Any:
        torch.manual_seed(0)
        net = NETWORKS[network]()
        settings = {"train_epochs": 3, "train_mb_size": 16, "eval_mb_size": 16, "evaluator": None, "seed": 0}
        return self.method(net, optimizer=OPTIMIZERS[optimizer](net), **{**settings, **self.arguments, **more})

    def trained(self, tasks: int, **more: Any) -> Any:
        strategy = self.build(**more)
        for _ in _train(strategy, small_stream(tasks).train_stream):
            pass
        return strategy

    # ------------------------------------------------------------------ the checks

    def stays(self, network: str, optimizer: str, tasks: int) -> None:
        strategy = self.build(network, optimizer)
        recorded: dict[int, Tensor] = {}
        drift = 0.0
        try:
            for task in _train(strategy, small_stream(tasks).train_stream):
                recorded[task] = _outputs(strategy.model, task)
                for key, before in recorded.items():
                    drift = max(drift, float((_outputs(strategy.model, key) - before).abs().max()))
        except ValueError as refusal:
            if getattr(self.method, "any_module", True) or recorded:
                raise
            assert "\n" not in str(refusal), f"it refuses the network in more than one line: {refusal}"
            return
        assert strategy.model.task_keys == list(range(tasks)), f"tasks learned: {strategy.model.task_keys}"
        if self.forgets:
            assert drift > 0, "a control must change old tasks, and this one does not"
        else:
            assert drift == 0, f"outputs of finished tasks moved by up to {drift}"

    def evaluation_changes_nothing(self) -> None:
        # PyTorch's loader would draw random numbers, and this check compares the random state.
        strategy, stream = (
            self.trained(2, plugins=[CachedTensors()]),
            small_stream(3),
        )
        before, random = copy.deepcopy(strategy.model.state_dict()), torch.get_rng_state()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the third task was never trained, which causes a warning
            strategy.eval(stream.test_stream)
        assert _same(before, strategy.model.state_dict()), "the model's state changed"
        assert torch.equal(random, torch.get_rng_state()), "torch's random state changed"
        assert strategy.model.task_keys == [0, 1], f"tasks after evaluation: {strategy.model.task_keys}"

    def copies_answer_alike(self) -> None:
        model = self.trained(3).model
        fresh = self.build().model
        fresh.load_state_dict(model.state_dict())
        for key in model.task_keys:
            expected = _outputs(model, key)
            assert torch.equal(_outputs(copy.deepcopy(model), key), expected), f"a deep copy differs on task {key}"
            assert torch.equal(_outputs(fresh, key), expected), f"a reloaded state differs on task {key}"
            with torch.no_grad():
                assert torch.equal(model.export(key)(_inputs()), expected), f"the export of task {key} differs"

    def resumes(self) -> None:
        stream = small_stream(3).train_stream
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint.pkl"
            uninterrupted = self.build()
            for task in _train(uninterrupted, stream):
                if task == 1:
                    save_checkpoint(uninterrupted, path)
                    state = torch.get_rng_state()
            torch.manual_seed(99)
            resumed, following = maybe_load_checkpoint(self.build(), path)
        torch.set_rng_state(state)
        assert following == 2, f"the checkpoint of two tasks goes on at {following}"
        for _ in _train(resumed, stream[2:]):
            pass
        for key in range(3):
            same = torch.equal(_outputs(resumed.model, key), _outputs(uninterrupted.model, key))
            assert same, f"task {key} differs after a resume"

    def mixed_batches(self) -> None:
        model, x = self.trained(2).model, _inputs()
        labels = torch.arange(len(x)) % 2
        with torch.no_grad():
            mixed = model.eval()(x, labels)
        for key in (0, 1):
            rows = labels == key
            assert torch.allclose(mixed[rows], _outputs(model, key)[rows], atol=1e-5), f"task {key} differs"

    def is_deterministic(self) -> None:
        first, second = self.trained(2).model, self.trained(2).model
        for key in (0, 1):
            assert torch.equal(_outputs(first, key), _outputs(second, key)), f"task {key} differs between two runs"

    def parameters_stay(self) -> None:
        strategy = self.build()
        learning = _train(strategy, small_stream(4).train_stream)
        sizes = [sum(p.numel() for p in strategy.model.parameters()) for _ in learning]
        assert len(set(sizes)) == 1, f"numbers in parameters after each task: {sizes}"
        bytes_per_task = strategy.model.bytes_per_task()
        assert list(bytes_per_task) == [0, 1, 2, 3], f"bytes_per_task() has {list(bytes_per_task)}"

    def leaves_arguments_alone(self) -> None:
        torch.manual_seed(0)
        net, plugins = NETWORKS["mlp"](), [_Plugin()]
        before = copy.deepcopy(net.state_dict())
        settings = {"train_epochs": 2, "train_mb_size": 16, "evaluator": None, "seed": 0, "plugins": plugins}
        for _ in _train(self.method(net, **{**settings, **self.arguments}), small_stream(2).train_stream):
            pass
        assert len(plugins) == 1, "the list of plugins changed"
        assert _same(before, net.state_dict()), "the network that was passed changed"
        assert plugins[0].called, "the caller's plugin was never called"

    def skips(self) -> None:
        if self.forgets:
            return
        strategy = self.build(on_revisit="skip")
        stream = small_stream(2).train_stream
        for _ in _train(strategy, stream):
            pass
        before = copy.deepcopy(strategy.model.state_dict())
        for _ in _train(strategy, stream[:1]):
            pass
        assert _same(before, strategy.model.state_dict()), "a skipped task changed the model"

    def learns(self) -> None:
        stream = small_stream(2, samples=96)
        strategy = self.build(train_epochs=20)
        for _ in _train(strategy, stream.train_stream):
            pass
        for task in (0, 1):
            x, y = (torch.stack([torch.as_tensor(row[i]) for row in stream.test_stream[task].dataset]) for i in (0, 1))
            with torch.no_grad():
                accuracy = float((strategy.model.eval()(x, task).argmax(dim=1) == y).float().mean())
            assert accuracy > 0.8, f"task {task} is known at {accuracy:.2f} after training; chance is 0.5"


class _Plugin:
    """A plugin that the caller passes to the strategy."""

    supports_distributed = False

    def __init__(self) -> None:
        self.called = False

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.called = True


def _train(strategy: Any, experiences: Sequence[Any]) -> Iterator[int]:
    """Train the tasks in order, and yield their keys; warnings about the small networks' capacity are ignored."""
    for experience in experiences:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            strategy.train(experience)
        yield experience.current_experience


def _inputs() -> Tensor:
    return torch.randn((8, *SHAPE), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def _outputs(model: Any, task: int) -> Tensor:
    was_training = model.training
    out: Tensor = model.eval()(_inputs(), task).clone()
    model.train(was_training)
    return out


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) if isinstance(a[name], Tensor) else a[name] == b[name] for name in a
    )
