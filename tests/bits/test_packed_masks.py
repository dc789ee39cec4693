import math

import pytest
import torch

from avalanche_supermask.bits.packed_masks import PackedMasks, pack, unpack

SHAPES = {"a.weight": (3, 5), "b.weight": (8,), "c": (2, 3, 3)}


def random_masks(seed, density=0.3):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) < density for name, shape in SHAPES.items()}


@pytest.mark.parametrize("n", [1, 7, 8, 9, 64, 1001])
def test_pack_and_unpack_are_inverse(n):
    mask = torch.rand(n) < 0.5
    bits = pack(mask)
    assert bits.dtype == torch.uint8
    assert len(bits) == math.ceil(n / 8)
    assert torch.equal(unpack(bits, (n,)), mask)


def test_one_bit_a_weight_and_task():
    masks = PackedMasks(SHAPES)
    assert masks.row_bytes == 2 + 1 + 3
    for slot in range(5):
        masks.commit(slot, random_masks(slot))
        assert masks.nbytes == (slot + 1) * masks.row_bytes
    for slot in range(5):
        for name, mask in random_masks(slot).items():
            assert torch.equal(masks.read(slot)[name], mask)


def test_union_and_coverage():
    masks = PackedMasks(SHAPES)
    for slot in range(3):
        masks.commit(slot, random_masks(slot))
    stack = {name: torch.stack([random_masks(s)[name] for s in range(3)]).sum(0) for name in SHAPES}
    once, twice = masks.coverage()
    for name in SHAPES:
        assert torch.equal(masks.union()[name], stack[name] >= 1)
        assert torch.equal(once[name], stack[name] >= 1)
        assert torch.equal(twice[name], stack[name] >= 2)
        assert torch.equal(masks.union([1])[name], random_masks(1)[name])
        assert not masks.union([])[name].any()


def test_drop_leaves_the_others():
    masks = PackedMasks(SHAPES)
    for slot in range(3):
        masks.commit(slot, random_masks(slot))
    masks.drop(1)
    assert masks.slots() == [0, 2]
    assert torch.equal(masks.read(2)["c"], random_masks(2)["c"])
    with pytest.raises(KeyError):
        masks.read(1)


def test_finished_masks_never_change():
    masks = PackedMasks(SHAPES)
    masks.commit(0, random_masks(0))
    with pytest.raises(ValueError, match="slot 0 already holds a mask"):
        masks.commit(0, random_masks(1))


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"c": torch.zeros(2, 3, 3)}, "expected bool of shape"),
        ({"c": torch.zeros(18, dtype=torch.bool)}, "expected bool of shape"),
    ],
)
def test_commit_checks_its_masks(wrong, complaint):
    with pytest.raises(ValueError, match=complaint):
        PackedMasks(SHAPES).commit(0, {**random_masks(0), **wrong})
    with pytest.raises(ValueError, match="got nothing"):
        PackedMasks(SHAPES).commit(0, {"a.weight": random_masks(0)["a.weight"]})


def test_state_loads_into_an_empty_store():
    masks, copy = PackedMasks(SHAPES), PackedMasks(SHAPES)
    for slot in (0, 4):
        masks.commit(slot, random_masks(slot))
    copy.commit(7, random_masks(7))
    copy.load_state_dict(masks.state_dict())
    assert copy.slots() == [0, 4]
    assert torch.equal(copy.read(4)["a.weight"], random_masks(4)["a.weight"])


def test_masks_import_without_avalanche():
    import subprocess
    import sys

    code = "import sys, avalanche_supermask.masks; sys.exit('avalanche' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
