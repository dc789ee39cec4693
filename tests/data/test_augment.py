"""Every image is shifted and mirrored independently, and is not changed otherwise."""

import pytest
import torch
from torch.nn import functional as F

from avalanche_supermask.data.augment import RandomCropFlip

IMAGE = torch.arange(1, 3 * 6 * 5 + 1, dtype=torch.uint8).reshape(3, 6, 5)


def every_outcome(padding, flip):
    """Return all crops of the padded image and their mirror images, computed directly."""
    padded = F.pad(IMAGE, [padding] * 4)
    crops = [
        padded[:, top : top + 6, left : left + 5] for top in range(2 * padding + 1) for left in range(2 * padding + 1)
    ]
    return [crop.flip(2) if mirrored else crop for crop in crops for mirrored in ((False, True) if flip else (False,))]


@pytest.mark.parametrize(("padding", "flip"), [(1, True), (2, False), (0, True)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_each_outcome_comes_about_equally_often(padding, flip, dtype):
    augment = RandomCropFlip(padding, flip=flip, generator=torch.Generator().manual_seed(0))
    outcomes = [tuple(outcome.flatten().tolist()) for outcome in every_outcome(padding, flip)]
    n = 400 * len(outcomes)
    seen = augment(IMAGE.to(dtype).expand(n, -1, -1, -1))
    assert seen.dtype == dtype
    counts = {outcome: 0 for outcome in outcomes}
    for image in seen.flatten(1).long().tolist():
        counts[tuple(image)] += 1  # A KeyError means that the image is none of the crops.
    assert min(counts.values()) > 300
    assert max(counts.values()) < 500


def test_the_same_generator_gives_the_same_images():
    x = torch.rand(8, 3, 8, 8)
    a, b, c = (RandomCropFlip(generator=torch.Generator().manual_seed(seed))(x) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_what_is_no_image_is_refused():
    with pytest.raises(ValueError, match=r"expected images \(batch, channels, height, width\); got \(8, 3\)"):
        RandomCropFlip()(torch.rand(8, 3))
    with pytest.raises(ValueError, match="padding is a number of pixels; got -1"):
        RandomCropFlip(-1)
