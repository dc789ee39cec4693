"""The exported names of the package, and the allowed imports between its parts."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import avalanche_supermask

ROOT = Path(avalanche_supermask.__file__).parent

# Each part of the package, and the parts that it may import. Parts that are not listed may import all parts.
MAY_IMPORT = {
    "layer_counts": set(),
    "functional": {"layer_counts"},
    "named_tensors": set(),
    "nested": set(),
    "registry": set(),
    "checked_arguments": set(),
    "lasting": {"nested"},
    "logits": {"nested"},
    "distributed": {"nested"},
    "loops": set(),
    "replay": set(),
    "recurrent_gradients": set(),
    "effective": {"functional", "loops", "replay"},
    "block_masks": {"functional"},
    "selection": {"block_masks", "checked_arguments", "effective", "functional"},
    "inference": {"functional", "logits", "nested", "strategy_batch"},
    "bits": {"functional", "loops", "named_tensors", "replay"},
    "masks": {"bits"},
    "data": {"distributed", "lasting", "nested"},
    "model": {
        "bits", "checked_arguments", "distributed", "effective", "lasting", "functional", "loops", "named_tensors",
        "selection", "inference", "logits", "nested", "recurrent_gradients",
    },
    "learning_rates": {"functional", "model"},
    "experience_labels": set(),
    "task_naming": {"model"},
    "class_outputs": {"model", "logits"},
    "first_logits": {"class_outputs", "distributed", "model"},
    "companions": set(),
    "default_criterion": set(),
    "shared_arguments": set(),
    "optimizer_parameters": {"model"},
    "phases": {"checked_arguments", "learning_rates", "model", "shared_arguments"},
    "plugin": {
        "checked_arguments", "class_outputs", "companions", "data", "distributed", "experience_labels", "first_logits",
        "functional", "inference", "learning_rates", "logits", "model", "nested", "optimizer_parameters", "phases",
        "selection", "task_naming",
    },
    "strategy": {
        "checked_arguments", "companions", "default_criterion", "experience_labels", "inference", "logits", "model",
        "optimizer_parameters", "optimizers", "plugin", "shared_arguments", "task_naming",
    },
    "optimizers": set(),
    "strategy_batch": set(),
    "metrics": {"model", "data", "logits", "nested", "strategy_batch"},
    "saving": {"model", "bits", "distributed", "functional", "named_tensors", "plugin"},
    "restore_best": {"data", "distributed", "plugin"},
    "plots": {"model"},
    "__main__": {"saving"},
    "pretrained": {"model", "text"},
    "strategies": {
        "bits", "checked_arguments", "class_outputs", "data", "distributed", "experience_labels", "functional",
        "inference", "learning_rates", "logits", "metrics", "model", "named_tensors", "nested", "phases", "plugin",
        "pretrained", "recurrent_gradients", "registry", "selection", "shared_arguments", "strategy", "strategy_batch",
    },
    "text": {"data", "saving"},
    "testing": {"data", "saving"},
}  # fmt: skip


def imports():
    """Return triples: the part that imports, the part that is imported, and the file."""
    found = set()
    for path in ROOT.rglob("*.py"):
        relative = path.relative_to(ROOT)
        part = relative.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("avalanche_supermask."):
                found.add((part, node.module.split(".")[1], str(relative)))
    return found


def test_every_public_name_is_there():
    for name in avalanche_supermask.__all__:
        assert getattr(avalanche_supermask, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'SubSup'"):
        _ = avalanche_supermask.SubSup


def test_selection_is_the_function_and_its_module():
    from avalanche_supermask import TopK, selection
    from avalanche_supermask.selection import selection as function

    shapes = {"w": (4, 5)}
    assert selection(shapes, density=0.1) == function(shapes, density=0.1) == TopK({"w": 2})


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_arrows_point_one_way(part):
    wrong = {(to, file) for of, to, file in imports() if of == part and to not in MAY_IMPORT[part] | {part}}
    assert not wrong


def test_the_rule_has_no_circle():
    done = set()
    while rest := {part for part in MAY_IMPORT if part not in done}:
        ready = {part for part in rest if MAY_IMPORT[part] <= done}
        assert ready, f"a circle among {sorted(rest)}"
        done |= ready


@pytest.mark.parametrize(
    ("command", "not_imported"),
    [
        (["avalanche_supermask", "--help"], "torch"),
        (["leaderboard", "run", "--help"], "torch"),
        (["leaderboard", "search", "--workers", "two"], "torch"),
        (["avalanche_supermask", "nothing.safetensors"], "avalanche"),
    ],
)
def test_commands_import_only_what_they_need(command, not_imported):
    """Avalanche takes seconds to import, and PyTorch as well."""
    module, *arguments = command
    script = f"import runpy, sys; sys.argv[1:] = {arguments}\ntry: runpy.run_module({module!r}, run_name='__main__')\n"
    script += f"except SystemExit: print('imported', {not_imported!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT.parent, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("imported False\n"), done.stdout + done.stderr
