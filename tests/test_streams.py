"""The fast MNIST streams have the samples of Avalanche's own; random images replace the data."""

import gzip
import json
import pickle
import runpy
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from avalanche.benchmarks.classic import PermutedMNIST, RotatedMNIST, SplitMNIST
from PIL import Image
from torchvision.datasets import MNIST

from avalanche_supermask.data.cached import load_tensors
from benchmarks.lib.image_data import load_cifar100, standardised, uint8_pixels
from benchmarks.lib.networks import SlimResNet18, bfloat16_is_fast
from benchmarks.lib.stream_names import STREAM_NAMES
from benchmarks.lib.streams import STREAMS, SUITES, build_stream, with_validation
from leaderboard.cell import Cell, run_cell, settings_of


@pytest.fixture(scope="module")
def mnist_root(tmp_path_factory):
    """Write random images in the file format of MNIST."""
    raw = tmp_path_factory.mktemp("data") / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.RandomState(0)
    for prefix, n in (("train", 120), ("t10k", 60)):
        images = random.randint(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        for name, header, payload in (
            (f"{prefix}-images-idx3-ubyte", struct.pack(">iiii", 2051, n, 28, 28), images),
            (f"{prefix}-labels-idx1-ubyte", struct.pack(">ii", 2049, n), labels),
        ):
            data = header + payload.tobytes()
            (raw / name).write_bytes(data)
            with gzip.open(raw / f"{name}.gz", "wb") as packed:
                packed.write(data)
    return raw.parent.parent


def by_class(columns):
    """Sort by class, as Avalanche stores an experience; the order does not matter, because batches are shuffled."""
    order = columns[1].argsort(stable=True)
    return [column[order] for column in columns]


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize(
    ("name", "classic"),
    [
        ("split-mnist", lambda **k: SplitMNIST(5, class_ids_from_zero_in_each_exp=True, **k)),
        (
            "split-mnist-ordered",
            lambda **k: SplitMNIST(5, class_ids_from_zero_in_each_exp=True, fixed_class_order=list(range(10)), **k),
        ),
        ("permuted-mnist", lambda **k: PermutedMNIST(10, **k)),
        ("rotated-mnist", lambda **k: RotatedMNIST(10, **k)),
    ],
)
def test_streams_equal_avalanches(name, classic, seed, mnist_root):
    ours = build_stream(name, seed=seed, dataset_root=mnist_root)
    theirs = classic(return_task_id=True, seed=seed, dataset_root=mnist_root)
    for a, b in ((ours.train_stream, theirs.train_stream), (ours.test_stream, theirs.test_stream)):
        assert len(a) == len(b) == STREAMS[name].tasks
        for x, y in zip(a, b, strict=True):
            assert list(x.task_labels) == list(y.task_labels)
            assert sorted(x.classes_in_this_experience) == sorted(y.classes_in_this_experience)
            ours_x, ours_y, ours_t = by_class(load_tensors(x.dataset, torch.device("cpu")))
            theirs_x, theirs_y, theirs_t = by_class(load_tensors(y.dataset, torch.device("cpu")))
            assert torch.equal(ours_y, theirs_y)
            assert torch.equal(ours_t, theirs_t)
            assert torch.allclose(ours_x, theirs_x, atol=1e-6)


@pytest.mark.parametrize("name", SUITES["digits"])
def test_digits_need_no_download(name):
    stream = build_stream(name, seed=0)
    spec = STREAMS[name]
    assert len(stream.train_stream) == spec.tasks
    x, y, _ = load_tensors(stream.train_stream[0].dataset, torch.device("cpu"))
    assert x[0].numel() == spec.shape[0]
    assert spec.network()(x[:2]).shape == (2, spec.classes)
    assert sorted(set(y.tolist())) == list(range(spec.classes))


def test_different_seeds_give_different_streams():
    a, b = (build_stream("permuted-digits", seed=seed).train_stream[0].dataset[0][0] for seed in (0, 1))
    assert not torch.equal(a, b)


def test_validation_data_come_out_of_the_training_data():
    stream = build_stream("split-digits", seed=0)
    held_out = with_validation(stream, share=0.2, seed=0)
    for before, train, valid in zip(stream.train_stream, held_out.train_stream, held_out.test_stream, strict=True):
        assert len(train.dataset) + len(valid.dataset) == len(before.dataset)
        rows = {tuple(s[0].flatten().tolist()) for s in valid.dataset}
        assert not rows & {tuple(s[0].flatten().tolist()) for s in train.dataset}
        assert list(train.task_labels) == list(before.task_labels)


def test_unknown_stream():
    with pytest.raises(ValueError, match=r"unknown stream 'mnist'; expected module:attribute or one of split-digits"):
        build_stream("mnist", seed=0)
    with pytest.raises(ValueError, match="pass --dataset-root"):
        build_stream("split-mnist", seed=0)


class Coloured:
    """A replacement for torchvision's CIFAR, with all pixels in one array."""

    classes, side = 100, 32
    base_folder, train_list = "cifar-100-python", [["train", "a checksum"]]

    def __init__(self, root, train, download=True):
        self.targets = [i % self.classes for i in range((4 if train else 2) * self.classes)]
        shape = (len(self.targets), self.side, self.side, 3)
        self.data = np.random.RandomState(0).randint(0, 256, shape, dtype=np.uint8)


class Ten(Coloured):
    classes = 10


class Files(Coloured):
    """A replacement for Avalanche's TinyImageNet and CORe50, which return one image at a time."""

    def __init__(self, root, train, mini=False):
        super().__init__(root, train)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return Image.fromarray(self.data[index]), self.targets[index]


class Tiny(Files):
    classes, side = 200, 64


class Objects(Files):
    classes = 50


@pytest.fixture
def colour_data(monkeypatch):
    fakes = {"CIFAR100": Coloured, "CIFAR10": Ten, "TinyImagenet": Tiny, "CORe50Dataset": Objects}
    for name, fake in fakes.items():
        monkeypatch.setattr(f"benchmarks.lib.image_data.{name}", fake)


@pytest.mark.parametrize(
    ("name", "tasks", "classes", "side"),
    [
        ("split-cifar100", 20, 5, 32),
        ("split-cifar10", 5, 2, 32),
        ("split-tinyimagenet", 10, 20, 64),
        ("core50", 10, 5, 32),
    ],
)
@pytest.mark.parametrize("labels", [True, False])
def test_colour_streams_have_their_classes_in_order(name, tasks, classes, side, labels, colour_data):
    name = name if labels else f"{name}-class"
    stream, spec = build_stream(name, seed=0, dataset_root=Path("anywhere")), STREAMS[name]
    assert len(stream.train_stream) == len(stream.test_stream) == spec.tasks == tasks
    x, y, t = load_tensors(stream.train_stream[3].dataset, torch.device("cpu"))
    assert x.shape == (4 * classes, 3, side, side)
    assert set(t.tolist()) == ({3} if labels else {0})
    first = 0 if labels else 3 * classes
    assert sorted(set(y.tolist())) == list(range(first, first + classes))
    logits = spec.network().eval()(x[:2])
    assert logits.shape == (2, spec.classes)
    assert logits.dtype == torch.float32
    assert spec.classes == (classes if labels else classes * tasks)
    with pytest.raises(ValueError, match="pass --dataset-root DIR"):
        build_stream(name, seed=0)


@pytest.mark.parametrize(
    ("capability", "gpu", "expected"),
    [("AVX512", False, True), ("AVX2", False, False), ("AVX2", True, True), ("DEFAULT", False, False)],
)
def test_bfloat16_is_for_machines_that_are_faster_with_it(capability, gpu, expected, monkeypatch):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert bfloat16_is_fast() is expected


def test_the_network_of_the_colour_streams_has_the_format_that_its_name_says():
    spec = STREAMS["split-cifar100"]
    assert spec.network()._in_bfloat16 == spec.shape.endswith("bfloat16") == bfloat16_is_fast()


def test_superclasses_are_tasks(colour_data, tmp_path):
    labels = np.random.RandomState(1).permutation(100)  # the 100 classes; five in a row form a superclass
    superclass = {int(label): place // 5 for place, label in enumerate(labels)}
    stored = {"fine_labels": [*superclass], "coarse_labels": [*superclass.values()]}
    (tmp_path / Coloured.base_folder).mkdir()
    (tmp_path / Coloured.base_folder / "train").write_bytes(pickle.dumps(stored))
    stream, spec = build_stream("superclass-cifar100", seed=0, dataset_root=tmp_path), STREAMS["superclass-cifar100"]
    raw, _ = load_cifar100(tmp_path)
    x, y, _ = load_tensors(stream.train_stream[7].dataset, torch.device("cpu"))
    mine = sorted(label for label in superclass if superclass[label] == 7)
    expected = torch.cat([raw[0][raw[1] == label] for label in mine])
    assert torch.equal(x[y.argsort(stable=True)], standardised(expected))
    assert sorted(set(y.tolist())) == [0, 1, 2, 3, 4]
    assert spec.network()(x[:2]).shape == (2, 5)
    assert not any(name.endswith("bias") for name, _ in spec.network().named_parameters())


def test_pixels_are_standardised_by_the_stream_or_by_the_network(colour_data):
    raw, _ = load_cifar100(Path("anywhere"))
    net = SlimResNet18(5).eval()
    x = raw[0][:4]
    assert abs(float(standardised(raw[0]).mean())) < 0.3
    assert uint8_pixels(x).dtype == torch.uint8
    assert torch.allclose(net(uint8_pixels(x)), net(standardised(x)), atol=1e-5)
    assert "mean" not in net.state_dict(), "constants are no state to store"


@pytest.mark.filterwarnings("ignore:task label 1 was never trained")
def test_a_coloured_stream_is_learned_by_a_method_and_a_baseline(colour_data, tmp_path):
    for row in ("supsup@0.5", "replay"):
        cell = Cell("core50", row, 0, settings_of("core50", row), epochs=1, tasks=2)
        result = run_cell(cell, dataset_root=Path("anywhere"), tb_dir=None)
        assert len(result["accuracy_matrix"]) == 2
    assert result["bytes_total"] > 0


def test_a_hundred_tasks_offline():
    stream = build_stream("permuted-digits-100", seed=0)
    assert len(stream.train_stream) == STREAMS["permuted-digits-100"].tasks == 100


def test_fashion_has_mnists_stream(mnist_root, monkeypatch):
    monkeypatch.setattr("benchmarks.lib.image_data.FashionMNIST", MNIST)
    for name, labels in (("split-fmnist", 2), ("split-fmnist-class", 10)):
        stream, spec = build_stream(name, seed=0, dataset_root=mnist_root), STREAMS[name]
        seen = {y for e in stream.train_stream for y in e.classes_in_this_experience}
        assert len(stream.train_stream) == spec.tasks == 5
        assert seen == set(range(labels)) == set(range(spec.classes))


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("unknown_ids", "--tasks 2 --batches 2 --asked 2 --checkpoints 1"),
        ("impressions", "--sizes 1,2 --epochs 1 --unseen 1"),
        ("data_path_accuracy", "--seeds 0"),
        ("identify", "--epochs 1 --mixture-epochs 1 --batches 1 --seeds 0"),
        ("adaptation", "--steps 2 --every 1 --basis-epochs 1 --tb tb"),
        ("no_ids", "--tasks 2 --batches 2 --check-every 2"),
        ("hopsupsup", "--seeds 0 --width 32"),
    ],
)
def test_the_scripts_run_and_say_where_a_result_comes_from(script, arguments, mnist_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = "costs" if script == "data_path_accuracy" else "papers"
    words = [*arguments.split(), "--dataset-root", str(mnist_root), "--out", "result.json"]
    monkeypatch.setattr(sys, "argv", [script, *words])
    threads = torch.get_num_threads()
    runpy.run_module(f"benchmarks.{folder}.{script}", run_name="__main__")
    torch.set_num_threads(threads)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["found" if script == "no_ids" else "rows"]
    assert result["command"].startswith(f"python -m benchmarks.{folder}.{script} ")
    assert str(mnist_root) not in json.dumps(result)
    assert {"versions", "commit", "machine"} <= set(result)


def test_the_names_for_command_lines_are_those_of_the_streams():
    assert tuple(STREAMS) == STREAM_NAMES
