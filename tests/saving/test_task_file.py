"""The file of one task: outputs are the same in any model with the same base; other models refuse the file."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_model
from torch import nn

from avalanche_supermask import (
    ExSSNeT,
    MaskedModel,
    SparseFineTuning,
    SupSup,
    export_task,
    load,
    load_task,
    save,
    save_task,
)
from avalanche_supermask.saving.sealed_file import read_sealed
from benchmarks.lib.networks import MultiHead
from tests.building import build
from tests.streams import NETWORKS, ResNet, class_stream, inputs, mlp, outputs, train_all

SETTINGS = {"train_epochs": 2, "train_mb_size": 16, "eval_mb_size": 16, "evaluator": None, "seed": 0}


def net():
    torch.manual_seed(3)
    return ResNet()


def tuned(n_tasks=2, network=None, **arguments):
    network = net() if network is None else network
    return train_all(SparseFineTuning(network, **{**SETTINGS, "density": 0.1, **arguments}), class_stream(n_tasks))


def answers(model, keys):
    return {key: outputs(model, inputs(), key) for key in keys}


@pytest.mark.parametrize("reads", ["base", "earlier"])
@pytest.mark.parametrize("norm", ["frozen", "own"])
def test_a_task_moves_to_another_model_of_the_same_base(tmp_path, reads, norm):
    one = tuned(3, reads=reads, norm=norm).model
    other = SparseFineTuning(net(), density=0.1, norm=norm, **SETTINGS).model
    for key in (2, 0):
        save_task(one, key, tmp_path / "task.safetensors")
        assert load_task(other, tmp_path / "task.safetensors") == key
    assert other.task_keys == [2, 0]
    for key in (2, 0):
        assert torch.equal(outputs(other, inputs(), key), outputs(one, inputs(), key))


@pytest.mark.filterwarnings("ignore:task label")
def test_where_the_entries_are_taken_the_values_are_kept_with_the_task(tmp_path):
    one, two = tuned(2, choose="magnitude"), tuned(2, choose="magnitude", seed=5, train_mb_size=8)
    path = tmp_path / "task.safetensors"
    save_task(one.model, 0, path)
    before, free = answers(two.model, (0, 1)), two.tasks_left
    key = load_task(two.model, path, key=7)
    model = two.model
    assert key == 7
    assert torch.equal(outputs(model, inputs(), 7), outputs(one.model, inputs(), 0))
    assert all(torch.equal(outputs(model, inputs(), key), old) for key, old in before.items())
    assert two.tasks_left == free  # The loaded task owns none of the shared entries.
    entries = sum(int(m.sum()) for m in model.task_mask(7).values())
    assert model.bytes_per_task()[7] == model.bytes_per_task()[0] + 4 * entries
    two.train(class_stream(3).train_stream[2])
    assert torch.equal(outputs(model, inputs(), 7), outputs(one.model, inputs(), 0))
    for again in (copy.deepcopy(model), reloaded(model, tmp_path), restored(model)):
        assert torch.equal(outputs(again, inputs(), 7), outputs(one.model, inputs(), 0))
        again.forget(7)
        assert all(torch.equal(outputs(again, inputs(), key), old) for key, old in before.items())
    model.eval().task_inference = "oneshot"
    with pytest.raises(ValueError, match=r"tasks \[7\] were loaded beside others and keep their own values"):
        model(inputs())
    model.task_inference = "entropy"
    model(inputs())


def reloaded(model, tmp_path):
    save(model, tmp_path / "model.safetensors")
    return load(tmp_path / "model.safetensors", net())


def restored(model):
    fresh = SparseFineTuning(net(), density=0.1, **SETTINGS).model
    fresh.load_state_dict(model.state_dict())
    return fresh


def test_a_file_has_the_bytes_of_the_task_alone(tmp_path):
    strategy = tuned(1, nn.Sequential(nn.Flatten(), nn.Linear(36, 2000), nn.ReLU(), nn.Linear(2000, 2)), density=0.01)
    save_task(strategy.model, 0, tmp_path / "task.safetensors")
    entries, own = 720, 2 * 2001
    mask = 72_000 * 0.0808 / 8  # entropy of the mask, in bytes
    assert (tmp_path / "task.safetensors").stat().st_size < 4 * (entries + own) + 1.1 * mask + 1500


def test_the_compact_file_holds_the_base_once_and_what_was_changed(tmp_path):
    strategy = tuned(3, nn.Sequential(nn.Flatten(), nn.Linear(36, 2000), nn.ReLU(), nn.Linear(2000, 2)), density=0.01)
    model = strategy.model
    save(model, tmp_path / "model.safetensors")
    base = 4 * (72_000 + 2000)
    per_task = 4 * (720 + 2 * 2001) + 2 * 72_000 * 0.0808 / 8
    assert (tmp_path / "model.safetensors").stat().st_size < base + 4 * 2 * 2001 + 3 * per_task + 5000
    again = load(tmp_path / "model.safetensors", nn.Sequential(*[copy.deepcopy(m) for m in model.net]))
    assert all(torch.equal(outputs(again, inputs(), key), old) for key, old in answers(model, range(3)).items())
    assert all(torch.equal(again.subnetworks.base[n], w) for n, w in model.subnetworks.base.items())
    assert again.outside == "base"


@pytest.mark.parametrize("method", [SupSup, ExSSNeT])
def test_masks_that_cut_move_too(tmp_path, method):
    one = train_all(method(mlp(), density=0.3, **SETTINGS), class_stream(2)).model
    two = train_all(method(mlp(), density=0.3, **{**SETTINGS, "seed": 4}), class_stream(1)).model
    save_task(one, 1, tmp_path / "task.safetensors")
    two.shared.update(one.shared)  # Other biases would be another base.
    before = outputs(two, inputs(), 0)
    load_task(two, tmp_path / "task.safetensors")
    assert torch.equal(outputs(two, inputs(), 1), outputs(one, inputs(), 1))
    assert torch.equal(outputs(two, inputs(), 0), before)


def test_a_head_per_label_moves_with_its_task(tmp_path):
    def network():
        torch.manual_seed(3)
        return MultiHead(mlp(outputs=5))

    one = tuned(3, network(), head="masked").model
    save_task(one, 2, tmp_path / "task.safetensors")
    other = SparseFineTuning(network(), density=0.1, head="masked", **SETTINGS).model
    load_task(other, tmp_path / "task.safetensors")
    assert torch.equal(outputs(other, inputs(), 2), outputs(one, inputs(), 2))
    with pytest.raises(ValueError, match=r"names its heads by label, and .* has label 2.*key=5; leave key out"):
        load_task(other, tmp_path / "task.safetensors", key=5)
    with pytest.raises(ValueError, match=r"task 2 is learned already; forget\(2\) first"):
        load_task(other, tmp_path / "task.safetensors")
    other.forget(2)
    assert load_task(other, tmp_path / "task.safetensors") == 2


# ---------------------------------------------------------------------- refused


@pytest.fixture
def task_file(tmp_path):
    save_task(tuned(1).model, 0, tmp_path / "task.safetensors")
    return tmp_path / "task.safetensors"


def fresh_model(network=None, **arguments):
    return SparseFineTuning(net() if network is None else network, **{**SETTINGS, "density": 0.1, **arguments}).model


def test_another_base_is_refused(task_file):
    other = net()
    with torch.no_grad():
        other.stem.weight[0, 0, 0, 0] += 1e-6
    with pytest.raises(ValueError, match="changes another base"):
        load_task(fresh_model(other), task_file)
    other = net()
    other.bn1.running_mean += 1e-3
    with pytest.raises(ValueError, match="changes another base"):
        load_task(fresh_model(other), task_file)


def test_another_architecture_is_refused(task_file):
    said = r"another architecture.*its 'stem.weight' has shape \(8, 1, 3, 3\), and this Sequential has no such tensor;"
    with pytest.raises(ValueError, match=said):
        load_task(fresh_model(mlp()), task_file)


def test_another_way_to_wrap_is_refused(task_file):
    with pytest.raises(ValueError, match="learned with outside='base'; this model has 'zero'; wrap the network with"):
        load_task(MaskedModel(net(), own=[r"fc\..*"], seed=0), task_file)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"norm": "own"}, "learned with per_task='none'; this model has 'norm'; wrap the network with per_task='none'"),
        ({"head": "masked"}, r"learned with own=\['fc.*'\]; this model has \[\]; wrap the network with own="),
    ],
)
def test_the_argument_that_wraps_the_network_in_another_way_is_named(task_file, arguments, said):
    with pytest.raises(ValueError, match=said):
        load_task(fresh_model(**arguments), task_file)


@pytest.mark.parametrize("own", [[], [r"3\..*"]])
def test_another_number_type_is_refused_also_without_a_base(tmp_path, own):
    def masked(dtype):
        net = nn.Sequential(nn.Flatten(), nn.Linear(36, 9, bias=False), nn.ReLU(), nn.Linear(9, 2, bias=False))
        return SupSup(net.to(dtype), own=own, **SETTINGS)

    save_task(train_all(masked(torch.float32), class_stream(1)).model, 0, tmp_path / "task.safetensors")
    for dtype in (torch.float64, torch.bfloat16):
        with pytest.raises(ValueError, match=rf"learned in torch.float32, and '1.weight' here has {dtype}"):
            load_task(masked(dtype).model, tmp_path / "task.safetensors")


def test_a_key_that_is_no_integer_is_refused(task_file):
    model = fresh_model()
    for key in ("1", 1.0):
        with pytest.raises(TypeError, match=f"key: expected an integer, .*; got {type(key).__name__} {key!r}"):
            load_task(model, task_file, key=key)
    assert load_task(model, task_file, key=torch.tensor(4)) == 4
    assert [type(key) for key in model.task_keys] == [int]
    with pytest.raises(KeyError, match=r"task '4' is not learned; learned tasks: \[4\]"):
        save_task(model, "4", task_file)


def test_a_place_that_takes_no_file_is_refused_by_pythons_own_errors(tmp_path):
    model = tuned(1).model
    for write in (save_task, save):
        arguments = (model, 0) if write is save_task else (model,)
        with pytest.raises(IsADirectoryError, match="is a folder; expected the path of a file"):
            write(*arguments, tmp_path)
        with pytest.raises(OSError, match="'/proc/"):
            write(*arguments, "/proc/task.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_key_in_use_is_refused(task_file):
    model = tuned(1).model
    with pytest.raises(ValueError, match="task 0 is learned already; pass another key, as in key=1"):
        load_task(model, task_file)
    assert load_task(model, task_file, key=1) == 1


def test_no_task_is_loaded_while_another_is_being_learned(task_file):
    model = fresh_model()
    model.begin(4)
    with pytest.raises(ValueError, match="task 4 is being learned"):
        load_task(model, task_file)


def test_a_task_that_is_not_learned_is_not_saved(tmp_path):
    with pytest.raises(KeyError, match="task 3 is not learned"):
        save_task(tuned(1).model, 3, tmp_path / "task.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9, 0.999])
def test_a_damaged_file_is_refused(task_file, place):
    data = bytearray(task_file.read_bytes())
    data[int(place * len(data))] ^= 16
    task_file.write_bytes(data)
    model = fresh_model()
    before = {n: t.clone() for n, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
    with pytest.raises(ValueError, match=r"is damaged|is no file of"):
        load_task(model, task_file)
    assert model.task_keys == []
    assert all(torch.equal(model.state_dict()[n], t) for n, t in before.items())


def test_a_file_of_another_kind_is_refused(tmp_path):
    save(tuned(1).model, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"is no file of save_task\(\): it was written by save\(\), so read it with load\(\)"
    ):
        load_task(fresh_model(), tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError):
        load_task(fresh_model(), tmp_path / "nothing")


# ---------------------------------------------------------------------- a folder


def test_a_folder_runs_without_this_package(tmp_path):
    model = tuned(2).model
    export_task(model, 1, tmp_path / "shared", name="Digits after four")
    plain = net().eval()
    load_model(plain, tmp_path / "shared" / "model.safetensors")
    assert torch.equal(plain(inputs()), outputs(model, inputs(), 1))
    config = json.loads((tmp_path / "shared" / "config.json").read_text())["avalanche_supermask"]
    assert config["entries"] == sum(int(m.sum()) for m in model.task_mask(1).values())
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "# Digits after four" in card
    assert config["base_sha256"] in card
    code = card.partition("```python\n")[2].partition("```")[0].replace("task.saf", f"{tmp_path}/shared/task.saf")
    said = {"net": net(), "x": inputs()}
    exec(code, said)
    assert torch.equal(said["logits"], outputs(model, inputs(), 1))


def test_a_folder_without_the_network_is_small(tmp_path):
    export_task(tuned(1).model, 0, tmp_path, weights=False)
    assert {path.name for path in tmp_path.iterdir()} == {"task.safetensors", "config.json", "README.md"}


def test_a_model_of_transformers_writes_its_own_files(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vit = ViTForImageClassification(ViTConfig(image_size=6, patch_size=3, num_channels=1, num_labels=2, **sizes)).eval()
    model = MaskedModel(vit, init="keep", outside="base", own=[r"classifier\..*"], seed=0)
    chosen = {name: torch.rand(shape) < 0.1 for name, shape in model.masked_shapes.items()}
    model.subnetworks.allocate_values({name: int(entries.sum()) for name, entries in chosen.items()})
    model.begin(0)
    model.learn_entries(chosen, mask=chosen)
    with torch.no_grad():
        for values in model.subnetworks.values.values():
            values.add_(0.1)
    model.commit()
    export_task(model, 0, tmp_path)
    again = ViTForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(inputs()).logits, model.eval().forward_task(0, inputs()).logits)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_moves(tmp_path, network):
    torch.manual_seed(1)
    brought = NETWORKS[network]()
    model = tuned(1, copy.deepcopy(brought)).model
    save_task(model, 0, tmp_path / "task.safetensors")
    other = fresh_model(copy.deepcopy(brought))
    load_task(other, tmp_path / "task.safetensors")
    assert torch.equal(outputs(other, inputs(), 0), outputs(model, inputs(), 0))
    manifest, _ = read_sealed(tmp_path / "task.safetensors", kind="supermask_task", written_by="save_task()", newest=2)
    assert manifest["network"] == type(brought).__name__


def test_a_strategy_is_no_model(tmp_path):
    strategy = build("sparse_finetuning", mlp())
    for wrong in (
        lambda: save_task(strategy, 0, tmp_path / "task.safetensors"),
        lambda: load_task(strategy, tmp_path / "task.safetensors"),
        lambda: export_task(strategy, 0, tmp_path / "folder"),
    ):
        with pytest.raises(TypeError, match=r"expected a MaskedModel, as in .*strategy\.model.*; got SparseFineTuning"):
            wrong()
