"""Measure class-incremental accuracy without task ids, with and without stored samples, and the bytes of each row.

    python -m benchmarks.practice.class_incremental --dataset-root DIR --out benchmarks/results/class_split_mnist.json

The streams are ``split-mnist`` (five tasks of two digits, in an order that depends on the seed), ``cifar100`` (ten
tasks of ten classes), ``clinc150`` (ten domains of fifteen intents), and ``cifar100-images``, on which a slim ResNet-18
is trained from scratch. ``cifar100`` and ``clinc150`` use features of frozen encoders, which
`benchmarks.lib.frozen_features` computes. A method of this package is trained once per seed and evaluated with
several inference methods: for every sample on its own and, in another column, for batches of 128 samples of one task.

There are controls: the features of the subnetworks alone, and the same Gaussians as a generative classifier (the
default uses the input alone). One row stores as many samples as the replay methods and calibrates the likelihoods of
the tasks on them. On ``clinc150``, the column ``novelty_auroc`` is the area under the ROC curve when the cost of the
best task is used to separate out-of-scope texts from texts of the ten domains. With ``--validation``, a share of the
training data is used instead of the test data; the settings were chosen in this way.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.training.plugins import ReplayPlugin
from avalanche.training.supervised import DER, ER_ACE, ICaRL, StreamingLDA
from avalanche.training.templates import SupervisedTemplate
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.optim import Adam

from avalanche_supermask import CachedTensors, methods
from avalanche_supermask.data.cached import load_tensors
from avalanche_supermask.inference import Combined, Entropy, ExpectedEntropy, Gaussian, Inference, MaxLogit
from avalanche_supermask.inference.gathering import gather_statistics
from benchmarks.lib.command import run_or_draw
from benchmarks.lib.frozen_features import frozen_features, out_of_scope_features
from benchmarks.lib.networks import SlimResNet18, mlp
from benchmarks.lib.streams import build_stream, with_validation
from leaderboard.cell import settings_of

BATCH = 128  # samples of a batch of one task, for the column of batches

Tasks = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Setting:
    """A stream, and the methods and settings that are run on it.

    Attributes:
        tasks: number of tasks.
        classes: number of classes of all tasks together.
        widths: widths of the network's input and hidden layers, without the outputs.
        epochs: epochs per task.
        batch_size: batch size of training.
        memory: number of samples that replay methods store.
        lr: learning rates of Adam by baseline, chosen on held-out training data; 1e-3 for baselines that are not in it.
        ours: settings of this package's methods, by name.
        ways: inference methods, by name.
        load: ``(seed, root) -> (training tasks, test tasks)``; every class has its own number.
        novel: ``root -> samples that belong to no task``; None (default) if there are none.
        build: function that returns a new network; None (default): an MLP of these widths.
    """

    tasks: int
    classes: int
    widths: tuple[int, ...]
    epochs: int
    batch_size: int
    memory: int
    lr: dict[str, float]
    ours: dict[str, dict[str, Any]]
    ways: dict[str, Inference]
    load: Callable[[int, Path | None], tuple[Tasks, Tasks]]
    novel: Callable[[Path | None], Tensor] | None = None
    build: Callable[[], nn.Module] | None = None

    @property
    def sample_bytes(self) -> int:
        """Bytes of a stored sample and its label."""
        return 4 * self.widths[0] + 8

    def network(self) -> nn.Module:
        """Return a new network."""
        return self.build() if self.build else mlp(self.widths[0], self.widths[1:], self.classes)


# ---------------------------------------------------------------------- streams


def _split_mnist(seed: int, root: Path | None) -> tuple[Tasks, Tasks]:
    stream = build_stream("split-mnist-class", seed=seed, dataset_root=root)
    sides = [[(x.flatten(1), y) for x, y in _tensors(side)] for side in (stream.train_stream, stream.test_stream)]
    return sides[0], sides[1]


def _images(seed: int, root: Path | None) -> tuple[Tasks, Tasks]:
    """Return all training images and 50 test images per class of CIFAR-100, as ten tasks of ten classes."""
    stream = build_stream("split-cifar100-class", seed=seed, dataset_root=root)
    train, test = _tensors(stream.train_stream), _tensors(stream.test_stream)
    tested = [torch.cat([(y == c).nonzero().flatten()[:50] for c in y.unique()]) for _, y in test]
    return _pairs(train), _pairs([(x[chosen], y[chosen]) for (x, y), chosen in zip(test, tested, strict=True)])


def _pairs(tasks: Tasks) -> Tasks:
    """Join every two tasks to one."""
    return [(torch.cat([a, c]), torch.cat([b, d])) for (a, b), (c, d) in zip(tasks[::2], tasks[1::2], strict=True)]


def _features(name: str, tasks: int, seed: int, root: Path | None) -> tuple[Tasks, Tasks]:
    del seed  # Classes are in their natural order; only networks and batches depend on the seed.
    train, test = frozen_features(name, root)
    a_task = (1 + int(train[1].max())) // tasks
    scale = train[0].shape[1] ** 0.5 if name == "clinc150" else 1.0  # the same scale as in `_out_of_scope`
    sides = [[(x[y // a_task == t] * scale, y[y // a_task == t]) for t in range(tasks)] for x, y in (train, test)]
    return sides[0], sides[1]


def _out_of_scope(root: Path | None) -> Tensor:
    """Return CLINC150's out-of-scope texts; features of length one are scaled to a mean square of one."""
    x = out_of_scope_features(root)
    return x * x.shape[1] ** 0.5


def _tensors(stream: Any) -> Tasks:
    columns = [load_tensors(experience.dataset.eval(), torch.device("cpu")) for experience in stream]
    return [(x, y) for x, y, _ in columns]


def _benchmark(train: Tasks, test: Tasks) -> Any:
    made = tensors_benchmark(train_tensors=train, test_tensors=test, task_labels=[0] * len(train))
    seen = [y.unique().tolist() for _, y in train]
    made.n_classes_per_exp = [len(labels) for labels in seen]  # iCaRL needs this attribute and the next one.
    made.classes_order = [label for labels in seen for label in labels]
    return made


# ---------------------------------------------------------------------- rows


@torch.no_grad()
def _score(answer: Callable[[Tensor], Tensor], test: Tasks, *, size: int = 1024) -> float:
    """Return the mean accuracy over the tasks."""
    return statistics.fmean(
        float(torch.cat([answer(part).argmax(dim=1) == labels for part, labels in _batches(x, y, size)]).float().mean())
        for x, y in test
    )


def _batches(x: Tensor, y: Tensor, size: int = 1024) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(x.split(size), y.split(size), strict=True)


@torch.no_grad()
def _inferred(model: Any, test: Tasks) -> dict[str, float]:
    """Return the accuracy, and the share of samples whose task is inferred correctly, as means over the tasks."""
    right, found = [], []
    for task, (x, y) in enumerate(test):
        parts = []
        for part, labels in _batches(x, y):
            hits = model(part).argmax(dim=1) == labels
            parts.append(torch.stack([hits, model.inferred_task == task]))
        shares = torch.cat(parts, dim=1).float().mean(dim=1)
        right.append(float(shares[0]))
        found.append(float(shares[1]))
    return {"accuracy": statistics.fmean(right), "task_id_accuracy": statistics.fmean(found)}


@dataclass(frozen=True)
class Calibrated:
    """Inference from the costs of a witness, scaled by one factor and shifted by one offset per task.

    Attributes:
        witness: inference method that computes the costs.
        factor: factor of all costs.
        offsets: offsets of the tasks, ``(tasks,)``.
    """

    witness: Gaussian
    factor: float
    offsets: Tensor

    @classmethod
    def on(cls, witness: Gaussian, model: Any, stored: Tasks) -> Calibrated:
        """Fit factor and offsets by multinomial logistic regression on stored samples of every task."""
        costs = torch.cat([witness.costs(model.candidates, len(stored), x) for x, _ in stored], dim=1)
        labels = torch.cat([torch.full((len(y),), task) for task, (_, y) in enumerate(stored)])
        unit = float(costs.std())
        log_factor, offsets = torch.zeros(1, requires_grad=True), torch.zeros(len(stored), requires_grad=True)
        optimizer = torch.optim.LBFGS([log_factor, offsets], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            logits = offsets - log_factor.exp() * costs.T / unit
            value = nn.functional.cross_entropy(logits, labels) + 0.01 * offsets.square().mean()
            value.backward()
            return value

        optimizer.step(loss)
        return cls(witness, float(log_factor.detach().exp()) / unit, offsets.detach())

    def __call__(self, model: Any, n_tasks: int, x: Any) -> Tensor:
        """Return the number of the most likely task of each sample."""
        return (self.offsets.unsqueeze(1) - self.factor * self.witness.costs(model, n_tasks, x)).argmax(dim=0)


@torch.no_grad()
def _novelty(way: Any, model: Any, test: Tasks, novel: Tensor) -> float:
    """Return the area under the ROC curve of the smallest cost over the tasks, for novel samples against known ones."""
    known = torch.cat([x for x, _ in test])
    costs = [way.costs(model.candidates, len(test), part).amin(dim=0) for x in (known, novel) for part in x.split(1024)]
    labels = torch.cat([torch.zeros(len(known)), torch.ones(len(novel))])
    return float(roc_auc_score(labels, torch.cat(costs)))


def ours(
    method: str, setting: Setting, train: Tasks, test: Tasks, seed: int, *, novel: Tensor | None
) -> Iterator[dict[str, Any]]:
    """Train one model and yield one row per inference method."""
    strategy = methods()[method](
        setting.network(), seed=seed, task_key="experience", train_epochs=setting.epochs, evaluator=None,
        train_mb_size=setting.batch_size, plugins=[CachedTensors()], **setting.ours[method],
    )  # fmt: skip
    for experience in _benchmark(train, test).train_stream:
        strategy.train(experience)
    model = strategy.model.eval()
    n = len(model.task_keys)
    given = statistics.fmean(_score(partial(model.forward_task, task), [data]) for task, data in enumerate(test))
    mask = sum(model.bytes_per_task().values()) / n
    yield {"method": method, "way": "given", "accuracy": given, "bytes_per_task": mask, "beside_the_mask": 0.0}
    for name, way in setting.ways.items():
        model.task_inference = way
        for task in model.task_keys:
            gather_statistics(model, task, [*_batches(*train[task])])
        row = _inferred(model, test)
        kept = sum(model.bytes_per_task().values()) / n
        model.task_inference = replace(way, per="batch")
        row["accuracy_in_batches"] = _score(model, test, size=BATCH)
        if novel is not None:
            row["novelty_auroc"] = _novelty(way, model, test, novel)
        yield {"method": method, "way": name, **row, "bytes_per_task": kept, "beside_the_mask": kept - mask}
        if way == Gaussian():
            draw = torch.Generator().manual_seed(seed)
            rows = [torch.randperm(len(y), generator=draw)[: setting.memory // n] for _, y in train]
            stored = [(x[chosen], y[chosen]) for (x, y), chosen in zip(train, rows, strict=True)]
            model.task_inference = Calibrated.on(way, model, stored)
            row = _inferred(model, test)
            kept += setting.memory * setting.sample_bytes / n
            name = f"{name}, calibrated on {setting.memory} stored samples"
            yield {"method": method, "way": name, **row, "bytes_per_task": kept, "beside_the_mask": kept - mask}


def baseline(name: str, setting: Setting, train: Tasks, test: Tasks, *, lr: float) -> dict[str, Any]:
    """Return the row of one baseline; its mini-batches from memory are as large as the new ones."""
    net, width = setting.network(), setting.widths[0]
    network_bytes = 4 * sum(p.numel() for p in net.parameters())
    sample = setting.sample_bytes
    common: dict[str, Any] = {"train_mb_size": setting.batch_size, "train_epochs": setting.epochs, "evaluator": None,
                              "eval_mb_size": 1024, "plugins": [CachedTensors()]}  # fmt: skip
    memory, kept = setting.memory, 0.0
    criterion = nn.CrossEntropyLoss()
    optimizer = Adam(net.parameters(), lr=lr)
    replayed = {"mem_size": memory, "batch_size_mem": setting.batch_size}
    if name.startswith("joint"):
        strategy: Any = SupervisedTemplate(model=net, optimizer=optimizer, criterion=criterion, **common)
        if name == "joint-linear":
            net = nn.Linear(width, setting.classes)
            common["train_epochs"] = 30
            strategy = SupervisedTemplate(
                model=net, optimizer=Adam(net.parameters(), lr=lr), criterion=criterion, **common
            )
        kept = sum(len(y) for _, y in train) * sample
        train = [(torch.cat([x for x, _ in train]), torch.cat([y for _, y in train]))]
    elif name == "replay":
        common["plugins"].append(ReplayPlugin(mem_size=memory))
        strategy = SupervisedTemplate(model=net, optimizer=optimizer, criterion=criterion, **common)
        kept = memory * sample
    elif name == "er-ace":
        strategy = ER_ACE(model=net, optimizer=optimizer, **replayed, **common)
        kept = memory * sample
    elif name == "der":
        strategy = DER(model=net, optimizer=optimizer, alpha=0.1, **replayed, **common)  # beta=0.5, so DER++
        kept = memory * (sample + 4 * setting.classes)
    elif name == "icarl":
        assert isinstance(net, nn.Sequential)
        body = net[:-1] if len(net) > 2 else nn.Flatten()
        strategy = ICaRL(
            feature_extractor=body, classifier=net[-1], optimizer=optimizer, memory_size=memory, buffer_transform=None,
            fixed_memory=True, **common,
        )  # fmt: skip
        kept = memory * sample + 4 * setting.classes * setting.widths[-1]
    elif name == "slda":
        strategy = StreamingLDA(
            slda_model=nn.Flatten(), criterion=criterion, input_size=width, num_classes=setting.classes, train_epochs=1,
            train_mb_size=max(len(y) for _, y in train), evaluator=None,  # It inverts a matrix at every mini-batch.
        )  # fmt: skip
        network_bytes, kept = 0, 4 * width * (width + setting.classes)
    else:
        raise ValueError(f"unknown baseline {name!r}; expected one of {', '.join(BASELINES)}")
    stream = _benchmark(train, test[: len(train)])
    for experience in stream.train_stream:
        strategy.train(experience)
    strategy.model.eval()
    answer = strategy.predict if name == "slda" else strategy.model
    return {
        "method": name,
        "accuracy": _score(answer, test),
        "bytes_per_task": kept / setting.tasks,
        "bytes_in_all": kept + network_bytes,
        "memory": memory if name in ("replay", "er-ace", "der", "icarl") else None,
        "lr": None if name == "slda" else lr,
    }


BASELINES = ("joint", "joint-linear", "der", "replay", "er-ace", "icarl", "slda")


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield all rows, seed by seed."""
    torch.set_num_threads(1)
    setting = SETTINGS[options.stream]
    if options.ways:
        setting = replace(setting, ways={name: setting.ways[name] for name in options.ways.split(";")})
    if options.memory:
        setting = replace(setting, memory=options.memory)
    for seed in map(int, options.seeds.split(",")):
        train, test = setting.load(seed, options.dataset_root)
        if options.validation:
            stream = with_validation(_benchmark(train, test), share=options.validation, seed=seed)
            train, test = _tensors(stream.train_stream), _tensors(stream.test_stream)
        for name in options.rows.split(","):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            if name in setting.ours:
                novel = setting.novel(options.dataset_root) if setting.novel else None
                found = ours(name, setting, train, test, seed, novel=novel)
            else:
                lr = options.lr or setting.lr.get(name, 1e-3)
                found = iter([baseline(name, setting, train, test, lr=lr)])
            for row in found:
                yield {"seed": seed, **row}
                print(f"{seed} {row['method']} {row.get('way', '')}: {row['accuracy']:.4f}", file=sys.stderr)


_SPLIT_WAYS: dict[str, Inference] = {
    "entropy": Entropy(),
    "gaussian": Gaussian(),
    "combined": Combined(),
    "gaussian rank 10": Gaussian(rank=10),
    "gaussian rank 5": Gaussian(rank=5),
    "generative classifier": Gaussian(names="class"),
    "gaussian and network select the class": Gaussian(names="both"),
    "features alone": Gaussian(layers=("3", "5")),
    "input and features": Gaussian(layers=("input", "3", "5")),
    "input and features, covariance a task, rank 50": Gaussian(
        layers=("input", "3", "5"), rank=50, covariance="task", ridge=0.01
    ),
}
_SHARED_WAYS: dict[str, Inference] = {
    "entropy": Entropy(),
    "gaussian": Gaussian(),
    "gaussian, covariance a task": Gaussian(covariance="task", rank=40),
    "shared covariance": Gaussian(shared=True, rank=40, ridge=0.01),
    "generative classifier": Gaussian(names="class"),
    "shared covariance names the class": Gaussian(shared=True, rank=40, ridge=0.01, names="class"),
    "shared covariance and network select the class": Gaussian(shared=True, rank=40, ridge=0.01, names="both"),
    "combined": Combined(),
    "shared covariance, entropy and logits": Combined(
        witnesses=(Gaussian(shared=True, rank=40, ridge=0.01), ExpectedEntropy(), MaxLogit())
    ),
}
# These take as many bytes as streaming LDA's full covariance.
_WIDE_WAYS: dict[str, Inference] = {
    "shared covariance, rank 200": Gaussian(shared=True, rank=200, ridge=0.003),
    "shared covariance, rank 200, names the class": Gaussian(shared=True, rank=200, ridge=0.003, names="class"),
    "shared covariance, rank 200, and network select the class": Gaussian(
        shared=True, rank=200, ridge=0.003, names="both"
    ),
}
_IMAGE_WAYS: dict[str, Inference] = {
    "gaussian": Gaussian(),
    "entropy": Entropy(),
    "combined": Combined(),
    "last features": Gaussian(layers=("fc",)),
    "combined with last features": Combined(
        witnesses=(Gaussian(), Gaussian(layers=("fc",)), ExpectedEntropy(), MaxLogit())
    ),
}
_FEATURE_METHODS: dict[str, dict[str, Any]] = {
    "supsup": {"density": 0.1, "mask_lr": 0.02},
    "exssnet": {"density": 0.1, "mask_lr": 0.02, "weight_lr": 0.01},
}


def _searched(stream: str, method: str) -> dict[str, Any]:
    """Return the leaderboard's settings for a stream, which were chosen on held-out training data."""
    found = settings_of(stream, method)
    return {name: value for name, value in found.items() if name not in ("task_key", "task_inference")}


SETTINGS = {
    "split-mnist": Setting(
        5, 10, (784, 300, 100), 6, 128, 200, {},
        {name: _searched("split-mnist-class", name) for name in ("supsup", "exssnet")}, _SPLIT_WAYS, _split_mnist,
    ),
    "clinc150": Setting(
        10, 150, (384, 300), 10, 32, 1000, {}, _FEATURE_METHODS, _SHARED_WAYS, partial(_features, "clinc150", 10),
        _out_of_scope,
    ),
    "cifar100": Setting(
        10, 100, (1280, 300), 10, 64, 1000, {"replay": 1e-4, "er-ace": 3e-4, "der": 1e-4}, _FEATURE_METHODS,
        {**_SHARED_WAYS, **_WIDE_WAYS}, partial(_features, "cifar100", 10),
    ),
    "cifar100-images": Setting(
        10, 100, (3 * 32 * 32,), 4, 64, 1000, {}, {"exssnet": _searched("split-cifar100-class", "exssnet@0.1")},
        _IMAGE_WAYS, _images, build=partial(SlimResNet18, 100, bfloat16=False),
    ),
}  # fmt: skip


def main() -> None:
    """Run and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", choices=(*SETTINGS,), default="split-mnist", help="(default %(default)s)")
    parser.add_argument("--rows", default=",".join(("supsup", "exssnet", *BASELINES)), help="(default %(default)s)")
    parser.add_argument("--seeds", default="10,11,12", help="comma-separated (default %(default)s)")
    parser.add_argument("--lr", type=float, help="of Adam for the baselines (default: those of the stream's setting)")
    parser.add_argument("--ways", help="names of ways of inference, with ; between them (default: all of the stream's)")
    parser.add_argument("--memory", type=int, help="stored samples (default: those of the stream's setting)")
    parser.add_argument("--validation", type=float, default=0.0, help="test on this share of the training data instead")
    run_or_draw(parser, "benchmarks.practice.class_incremental", run, None)


if __name__ == "__main__":
    main()
