"""The compact file: it works for every method, is small, and a damaged file is never loaded as a wrong model."""

import json
import pickletools
import random
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from avalanche_supermask import ExSSNeT, MaskedModel, SupSup, load, load_task, save, save_task
from avalanche_supermask.inference import ExpectedEntropy
from avalanche_supermask.saving import compact_reading, sealed_file
from avalanche_supermask.saving.compact_reading import FORMAT
from avalanche_supermask.saving.sealed_file import read_sealed
from benchmarks.faults.reliability import damaged
from benchmarks.lib.networks import MultiHead
from benchmarks.lib.networks import mlp as plain_mlp
from tests.building import METHODS, build, same_state
from tests.streams import NETWORKS, class_stream, inputs, mlp, outputs, train_all


def multihead():
    return MultiHead(plain_mlp(36, (24,), 2))


def saved(tmp_path, strategy, n_tasks=3):
    model = train_all(strategy, class_stream(n_tasks)).model
    path = tmp_path / "model.safetensors"
    save(model, path)
    return model, path


@pytest.mark.parametrize("network", ["mlp", "resnet"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_as_before(tmp_path, method, network):
    model, path = saved(tmp_path, build(method, NETWORKS[network](), task_inference="entropy"), 4)
    loaded = load(path, NETWORKS[network]())
    assert loaded.task_keys == model.task_keys
    assert loaded.bytes_per_task() == model.bytes_per_task()
    assert loaded.task_inference == "entropy"
    model.task_inference = loaded.task_inference = "given"
    for key in model.task_keys:
        assert torch.equal(outputs(loaded, inputs(), key), outputs(model, inputs(), key))
        assert same_state(loaded.subnetworks.task_mask(key), model.subnetworks.task_mask(key))


def test_heads_of_a_multi_head_network_come_back(tmp_path):
    model, path = saved(tmp_path, build("exssnet", multihead()))
    loaded = load(path, multihead())
    for key in model.task_keys:
        assert torch.equal(outputs(loaded, inputs(), key), outputs(model, inputs(), key))


def test_options_of_the_wrapping_come_back(tmp_path):
    strategy = build("supsup", NETWORKS["resnet"](), per_task="norm", exclude=["fc.*"], init="keep")
    model, path = saved(tmp_path, strategy)
    loaded = load(path, NETWORKS["resnet"]())
    assert (loaded.wrapping, loaded.init, loaded.seed) == (model.wrapping, "keep", model.seed)
    assert torch.equal(outputs(loaded, inputs(), 1), outputs(model, inputs(), 1))


def test_a_loaded_model_learns_on_and_its_old_tasks_stay(tmp_path):
    model, path = saved(tmp_path, build("exssnet", mlp()))
    net = mlp()
    loaded = load(path, net)
    strategy = ExSSNeT(loaded, density=0.3, train_epochs=2, weight_epochs=1, train_mb_size=16, evaluator=None)
    strategy.train(class_stream(4).train_stream[3])
    assert loaded.task_keys == [0, 1, 2, 3]
    for key in model.task_keys:
        assert torch.equal(outputs(loaded, inputs(), key), outputs(model, inputs(), key))
    scores = model.fresh_scores(7)
    assert same_state(scores, loaded.fresh_scores(7)), "new tasks start as they would have"


def test_a_model_without_tasks(tmp_path):
    model = MaskedModel(mlp(), seed=3)
    save(model, tmp_path / "m")
    assert load(tmp_path / "m", mlp()).task_keys == []


def test_the_masks_take_little_more_than_their_entropy(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2000), nn.ReLU(), nn.Linear(2000, 2))
    strategy = SupSup(net, density=0.05, train_epochs=1, train_mb_size=16, evaluator=None, seed=0)
    model, path = saved(tmp_path, strategy, 6)
    _, tensors = read_sealed(path, kind="supermask", written_by="save()", newest=FORMAT)
    bound = 6 * 76_000 * 0.2864 / 8  # n H(0.05)
    assert tensors["masks"].numel() <= 1.05 * bound
    weights = sum(w.nbytes for w in (*model.subnetworks.frozen.values(), *model.shared.values()))
    assert path.stat().st_size < weights + 1.05 * bound + 8000


def test_no_pickle(tmp_path):
    _, path = saved(tmp_path, build("supsup", mlp()))
    with pytest.raises(ValueError, match=r"opcode|pickle|stack|codec"):
        pickletools.dis(path.read_bytes())
    assert set(load_file(path)) >= {"masks"}


def test_saving_waits_for_the_end_of_a_task(tmp_path):
    model = MaskedModel(mlp(), seed=0)
    model.begin(0, 0)
    with pytest.raises(ValueError, match=r"task 0 is being learned.*save between experiences"):
        save(model, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_strategy_is_no_model(tmp_path):
    with pytest.raises(TypeError, match=r"save\(strategy\.model, path\); got SupSup"):
        save(build("supsup", mlp()), tmp_path / "tasks.safetensors")


def test_a_crash_while_saving_leaves_the_old_file(tmp_path, monkeypatch):
    model, path = saved(tmp_path, build("supsup", mlp()))
    before = path.read_bytes()

    def crash(tensors, name, metadata):
        with open(name, "wb") as half:
            half.write(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(sealed_file, "save_file", crash)
    with pytest.raises(OSError, match="disk full"):
        save(model, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# ------------------------------------------------------------------ files that cannot be loaded


def test_another_network_is_told_by_its_first_weight(tmp_path):
    _, path = saved(tmp_path, build("supsup", mlp()))
    said = (
        r"of another network: at '1.weight' it has a weight of shape \(24, 36\), and this Sequential has .*\(30, 36\);"
    )
    with pytest.raises(ValueError, match=said):
        load(path, mlp(width=30))
    with pytest.raises(ValueError, match=r"at '1.weight' it has a weight of shape \(24, 36\), and .* has no weight;"):
        load(path, mlp()[1])


def test_what_is_no_network(tmp_path):
    model, path = saved(tmp_path, build("supsup", mlp()))
    for wrong, got in ((nn.Linear, "the class Linear"), (model, "MaskedModel"), (None, "NoneType")):
        with pytest.raises(TypeError, match=rf"expected the network that was wrapped, as in .*; got {got}"):
            load(path, wrong)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing", mlp())


def test_foreign_files(tmp_path):
    path = tmp_path / "file"
    for content in (b"", b"short", b"\xff" * 100, json.dumps({"a": 1}).encode()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged, or no file of save"):
            load(path, mlp())
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="its manifest is missing"):
        load(path, mlp())


def test_a_later_format_asks_for_an_upgrade(tmp_path, monkeypatch):
    _, path = saved(tmp_path, build("supsup", mlp()))
    monkeypatch.setattr(compact_reading, "FORMAT", 0)
    with pytest.raises(ValueError, match=r"has format 1.*reads up to 0: upgrade avalanche-supermask"):
        load(path, mlp())


def test_settings_of_an_inference_object_are_not_stored_and_loading_says_so(tmp_path):
    model, path = saved(tmp_path, build("supsup", mlp()))
    model.task_inference = ExpectedEntropy(surprise=3.0)
    save(model, path)
    with pytest.warns(
        UserWarning, match=r"ExpectedEntropy\(per='sample', surprise=3.0\).*set model.task_inference again"
    ):
        loaded = load(path, mlp())
    assert loaded.task_inference == "given"
    model.task_inference = "entropy"
    save(model, path)
    assert load(path, mlp()).task_inference == "entropy"


@pytest.mark.parametrize("dense_rows", [False, True])
def test_masks_with_dense_rows_have_short_codes_and_a_later_format(tmp_path, dense_rows):
    """The same mask once as it is, and once with its entries in random order."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.where(torch.arange(64) % 8 == 0, 0.2, 0.005)
    mask = torch.rand(64, 400, generator=generator) < shares[:, None]
    if not dense_rows:
        mask = mask.flatten()[torch.randperm(mask.numel(), generator=generator)].view_as(mask)
    values = torch.randn(int(mask.sum()), generator=generator)
    model = MaskedModel(nn.Sequential(nn.Linear(400, 64, bias=False)), seed=0)
    model.adopt(0, None, {"0.weight": mask}, {"0.weight": values}, {})
    save(model, tmp_path / "all")
    save_task(model, 0, tmp_path / "one")
    assert read_sealed(tmp_path / "all", kind="supermask", written_by="", newest=9)[0]["format"] == 1 + 2 * dense_rows
    manifest, tensors = read_sealed(tmp_path / "one", kind="supermask_task", written_by="", newest=9)
    assert manifest["format"] == 1 + dense_rows
    assert (len(tensors["masks"]) < 640) == dense_rows
    again = load(tmp_path / "all", nn.Sequential(nn.Linear(400, 64, bias=False)))
    other = MaskedModel(nn.Sequential(nn.Linear(400, 64, bias=False)), seed=0)
    load_task(other, tmp_path / "one")
    for found in (again, other):
        assert torch.equal(found.effective_weights(0)["0.weight"], model.effective_weights(0)["0.weight"])


def test_1500_damaged_files_give_an_error_or_the_very_same_model(tmp_path):
    """Header, manifest, weights and masks are damaged; a third of the damage is in the head of the file."""
    model, path = saved(tmp_path, build("exssnet", mlp(8)))
    data, rng = path.read_bytes(), random.Random(0)
    expected = {key: outputs(model, inputs(), key) for key in model.task_keys}
    head = 8 + int.from_bytes(data[:8], "little")
    survived, messages = 0, set()
    for i in range(1500):
        part = damaged(data[:head], rng) + data[head:] if i % 3 == 0 else damaged(data, rng)
        path.write_bytes(part)
        try:
            loaded = load(path, mlp(8))
        except ValueError as error:
            messages.add(re.sub(r".*?(is damaged|its manifest|has format).*", r"\1", str(error), flags=re.DOTALL))
            continue
        survived += 1
        assert all(torch.equal(outputs(loaded, inputs(), key), before) for key, before in expected.items())
    assert messages <= {"is damaged", "its manifest", "has format"}
    assert survived < 30, "only damage that changes nothing, as to white space, may pass"


def test_the_checksum_is_what_finds_a_changed_weight(tmp_path, monkeypatch):
    """Negative control: without the checksum, the same damaged file is loaded."""
    model, path = saved(tmp_path, build("supsup", mlp()))
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8 : 8 + size]))
    data[8 + size + header["subnetworks.frozen.1/weight"]["data_offsets"][0] + 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        load(path, mlp())
    monkeypatch.setattr(sealed_file, "digest", lambda *arguments: header["__metadata__"]["sha256"])
    changed = load(path, mlp()).subnetworks.frozen["1.weight"]
    assert int((changed != model.subnetworks.frozen["1.weight"]).sum()) == 1


def test_a_file_of_an_earlier_version_answers_and_learns_on(tmp_path):
    """The file was written at commit 40fc73a, before ``scores`` was added; its outputs of that time are stored too."""
    folder = Path(__file__).parent
    model = load(folder / "format1.safetensors", mlp())
    expected = load_file(folder / "format1_answers.safetensors")
    assert model.task_keys == [0, 1]
    for key in model.task_keys:
        torch.testing.assert_close(outputs(model, inputs(), key), expected[str(key)])
    strategy = ExSSNeT(model, density=0.3, train_epochs=2, weight_epochs=1, train_mb_size=16, evaluator=None)
    before = outputs(model, inputs(), 0)
    strategy.train(class_stream(3).train_stream[2])
    assert torch.equal(outputs(model, inputs(), 0), before)
    save(model, tmp_path / "again.safetensors")


def test_a_folder_that_is_not_there(tmp_path):
    strategy = train_all(build("supsup", mlp()), class_stream(1))
    with pytest.raises(
        FileNotFoundError, match=r"there is no folder .*missing to write model.safetensors into; create"
    ):
        save(strategy.model, tmp_path / "missing" / "model.safetensors")
