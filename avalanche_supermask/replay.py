"""Run the same operators on the same addresses in every step, on a GPU with one launch instead of one per operator.

A GPU takes a few microseconds for an operator on a small layer, but the host takes 10 to 40 microseconds to launch it.
A CUDA graph records the launches of a function once and repeats all of them with one launch. It reads and writes the
addresses of the recorded tensors, so it serves only functions whose inputs and outputs stay where they are, such as the
choice of masks by the scores of a task.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Replay"]

MOST_ENTRIES = 2**23
"""Greatest number of entries whose operators are recorded. A graph keeps the memory of its temporary tensors, about 32
bytes per entry for a sort. With more entries, the launches are a small part of the time anyway."""
_RECORDINGS = 4  # greatest number of recordings, for functions whose arguments move again and again


class Replay:
    """Calls a function of tensors; on a GPU it records the function once, and then repeats the recording.

    The function runs as usual on a CPU, for large tensors, and while the user records a graph himself. If the inputs
    have moved, it runs as usual twice and is then recorded again, a few times at most. If it cannot be recorded, it
    runs as usual from then on.

    Args:
        entries: number of entries on which the function computes; more than `MOST_ENTRIES` are not recorded.

    Example:
        >>> total, replay = torch.zeros(2), Replay(entries=2)
        >>> replay(total.add_, torch.ones(2)), replay(total.add_, torch.ones(2))
        (None, None)
        >>> total.tolist()
        [2.0, 2.0]
    """

    def __init__(self, *, entries: int) -> None:
        self.recordings_left = _RECORDINGS if entries <= MOST_ENTRIES else 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._places: list[tuple[int, tuple[int, ...]]] = []  # addresses and strides of the last call's tensors

    # The function is an argument of the call, because an object that stored its own method in a `Replay` would be in a
    # cycle of references, and the device memory of such an object is not freed before Python's next garbage collection.
    def __call__(self, function: Callable[..., object], *tensors: Tensor) -> None:
        """Run the function, or repeat its recording.

        Args:
            function: the same function in every call. It computes on its arguments and on tensors that keep their
                addresses, and writes only to the latter. It must not read numbers back from the device or draw random
                numbers.
            tensors: the function's arguments, all on one device; their shapes and types are the same in every call.
        """
        device = tensors[0].device
        if device.type != "cuda":
            function(*tensors)
        elif device.index == torch.cuda.current_device():
            self._call(function, tensors)
        else:
            with torch.cuda.device(device):
                self._call(function, tensors)

    def _call(self, function: Callable[..., object], tensors: tuple[Tensor, ...]) -> None:
        if torch.cuda.is_current_stream_capturing():
            function(*tensors)
            return
        places = [(tensor.data_ptr(), tensor.stride()) for tensor in tensors]
        known = places == self._places
        if known and self._graph is not None:
            self._graph.replay()
            return
        # The old recording goes before the function runs: if the function fails, it must not serve the new places.
        self._graph, self._places = None, places
        function(*tensors)
        # A recording takes as long as several calls, so it is made when the same places come a second time.
        if known and self.recordings_left:
            self._graph = self._recorded(function, tensors)
            self.recordings_left -= self._graph is not None

    def _recorded(self, function: Callable[..., object], tensors: tuple[Tensor, ...]) -> torch.cuda.CUDAGraph | None:
        """A graph of the function's operators; None if they cannot be recorded. Nothing is computed."""
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(side):
                # Other threads, such as those of data loaders, may use the device at the same time.
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    function(*tensors)
                finally:
                    graph.capture_end()
        except RuntimeError:
            self.recordings_left = 0
        torch.cuda.current_stream().wait_stream(side)
        return graph if self.recordings_left else None
