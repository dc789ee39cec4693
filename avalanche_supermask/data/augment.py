"""Random crops and flips of a batch of images that is already on its device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["RandomCropFlip"]


class RandomCropFlip:
    """Shifts every image by a random number of pixels, and mirrors it with probability one half.

    Each image has its own shift. Pixels that are shifted in are 0. This is black if the network standardises the
    pixels, and the mean if they are standardised before.

    Args:
        padding: largest shift, in pixels (default 4, which is usual for CIFAR).
        flip: whether to exchange left and right with probability one half (default True).
        generator: random generator on the images' device; None: torch's default generator.

    Shapes: images ``(batch, channels, height, width)`` of any type, both as input and as output.

    Example:
        >>> RandomCropFlip()(torch.zeros(8, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([8, 3, 32, 32])
    """

    def __init__(self, padding: int = 4, *, flip: bool = True, generator: torch.Generator | None = None) -> None:
        if padding < 0:
            raise ValueError(f"padding is a number of pixels; got {padding}")
        self.padding, self.flip, self.generator = padding, flip, generator

    def __call__(self, x: Tensor) -> Tensor:
        """Return the batch of images, shifted and mirrored."""
        if x.dim() != 4:
            raise ValueError(f"expected images (batch, channels, height, width); got {tuple(x.shape)}")
        n, channels, height, width = x.shape
        top, left = self._draw(2 * self.padding + 1, (2, n), x.device)
        rows = top[:, None] + torch.arange(height, device=x.device)  # (n, height)
        columns = left[:, None] + torch.arange(width, device=x.device)  # (n, width)
        if self.flip:
            mirrored = self._draw(2, (n, 1), x.device).bool()
            columns = torch.where(mirrored, columns.flip(1), columns)
        padded = F.pad(x, [self.padding] * 4)
        sample = torch.arange(n, device=x.device)[:, None, None, None]
        channel = torch.arange(channels, device=x.device)[None, :, None, None]
        return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]

    def _draw(self, high: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        return torch.randint(high, shape, device=device, generator=self.generator)
