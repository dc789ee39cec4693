"""Properties that hold for any input, of packing, unions, codes, top-k and phases."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_supermask.bits.packed_masks import PackedMasks, pack, unpack
from avalanche_supermask.bits.rice import decode, encode
from avalanche_supermask.functional import erdos_renyi_counts, kth_largest, top_k_mask
from avalanche_supermask.strategies.exssnet import ExSSNeTPlugin

settings.register_profile("quiet", deadline=None, max_examples=60)
settings.load_profile("quiet")
bits = st.lists(st.booleans(), min_size=1, max_size=200)
numbers = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, float("inf"), float("-inf")]), st.floats(-3, 3, width=32, allow_nan=False)
)


@given(bits)
def test_packing_loses_nothing(values):
    mask = torch.tensor(values)
    assert torch.equal(unpack(pack(mask), mask.shape), mask)
    assert len(pack(mask)) == -(-len(values) // 8)


@given(bits)
def test_codes_lose_nothing_and_say_how_long_they_are(values):
    mask = np.array(values)
    code = encode(mask)
    found, used = decode(code + b"what follows", len(values))
    assert used == len(code)
    assert (found == mask).all()


@given(st.integers(1, 40), st.integers(1, 6), st.data())
def test_unions_and_drops_are_those_of_sets(n, k, data):
    sets = [data.draw(st.sets(st.integers(0, n - 1))) for _ in range(k)]
    masks = PackedMasks({"w": (n,)})
    for slot, members in enumerate(sets):
        masks.commit(slot, {"w": torch.tensor([i in members for i in range(n)])})
    gone = data.draw(st.integers(0, k - 1))
    assert set(masks.union()["w"].nonzero().flatten().tolist()) == set().union(*sets)
    masks.drop(gone)
    rest = set().union(*(s for i, s in enumerate(sets) if i != gone)) if k > 1 else set()
    assert set(masks.union()["w"].nonzero().flatten().tolist()) == rest


@given(st.lists(numbers, min_size=1, max_size=60), st.data())
def test_top_k_keeps_exactly_k_of_the_largest_ties_and_infinities_included(values, data):
    scores = torch.tensor(values)
    keep = data.draw(st.integers(1, len(values)))
    mask = top_k_mask(scores, keep)
    assert int(mask.sum()) == keep
    order = sorted(range(len(values)), key=lambda i: (-abs(scores[i].item()), i))
    assert mask.nonzero().flatten().tolist() == sorted(order[:keep])


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=80), st.data(), st.floats(0.01, 1e6))
def test_a_hint_never_changes_the_kth_largest(values, data, hint):
    array = np.array(values, dtype=np.float32)
    k = data.draw(st.integers(1, len(values)))
    assert kth_largest(array, k, hint=hint) == sorted(array, reverse=True)[k - 1]


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=5), st.floats(0.01, 1.0))
def test_erdos_renyi_keeps_the_overall_density_and_never_more_than_a_layer_has(shapes, density):
    layers = {str(i): shape for i, shape in enumerate(shapes)}
    counts = erdos_renyi_counts(layers, density)
    sizes = {name: a * b for name, (a, b) in layers.items()}
    assert all(1 <= counts[name] <= sizes[name] for name in layers)
    assert abs(sum(counts.values()) - density * sum(sizes.values())) <= 1.5 * len(layers)


@given(st.integers(1, 30), st.data())
def test_every_epoch_is_in_exactly_one_phase_in_order(epochs, data):
    weights = data.draw(st.integers(0, epochs - 1))
    plugin = ExSSNeTPlugin(weight_epochs=weights)
    names = [plugin.phase_at(epoch, epochs)[0].name for epoch in range(epochs)]
    assert names == ["mask"] * (epochs - weights) + ["weight"] * weights
