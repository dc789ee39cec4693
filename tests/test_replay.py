"""The logic of recordings, with a simulated GPU: what is run as usual, what is recorded, and what is repeated."""

import itertools
from contextlib import contextmanager, nullcontext

import pytest
import torch

from avalanche_supermask import replay
from avalanche_supermask.replay import Replay


class Place:
    """A tensor on the simulated GPU; its value lies in the GPU's memory, under its address."""

    device = torch.device("cuda", 0)

    def __init__(self, address, stride=(1,)):
        self.address, self.strides = address, stride

    def data_ptr(self):
        return self.address

    def stride(self):
        return self.strides


class GPU:
    """A GPU with one operator; while it records, it notes the operator and the address instead of running it."""

    def __init__(self):
        self.memory, self.total, self.runs = {}, 0, 0
        self.recording, self.recordings, self.device, self.fails = None, 0, 0, None

    def add(self, place):
        """Add the value of a tensor to the total, or fail."""
        self.runs += 1
        if self.fails is not None:
            raise self.fails
        if self.recording is None:
            self.total += self.memory[place.address]
        else:
            self.recording.append(place.address)


@pytest.fixture
def gpu(monkeypatch):
    """Replace the functions of `torch.cuda` by those of a simulated GPU."""
    gpu = GPU()

    class Graph:
        def capture_begin(self, *, capture_error_mode):
            gpu.recording, gpu.recordings = [], gpu.recordings + 1

        def capture_end(self):
            self.addresses, gpu.recording = gpu.recording, None

        def replay(self):
            gpu.total += sum(gpu.memory[address] for address in self.addresses)

    class Stream:
        def wait_stream(self, other):
            """Return at once, because the simulated GPU finishes every operator at once."""

    @contextmanager
    def device(chosen):
        before, gpu.device = gpu.device, chosen.index
        yield
        gpu.device = before

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: gpu.device)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: gpu.recording is not None)
    return gpu


def test_the_third_call_repeats_a_recording(gpu):
    again = Replay(entries=3)
    for value in range(1, 6):
        gpu.memory[7] = value  # The recording reads the values that are there when it is repeated.
        again(gpu.add, Place(7))
    assert (gpu.total, gpu.recordings) == (15, 1)
    assert gpu.runs == 3, "two calls, and the recording"


@pytest.mark.parametrize("moved", [Place(8), Place(7, stride=(2,))], ids=["other address", "other strides"])
def test_tensors_elsewhere_are_not_those_of_the_recording(gpu, moved):
    again = Replay(entries=3)
    gpu.memory.update({7: 1, 8: 10})
    for _ in range(3):
        again(gpu.add, Place(7))
    for n in range(1, 4):
        runs = gpu.runs
        again(gpu.add, moved)
        assert gpu.total == 3 + n * gpu.memory[moved.address]
        assert gpu.runs - runs == [1, 2, 0][n - 1], "as usual, as usual with a recording, repeated"
    assert gpu.recordings == 2


def test_tensors_that_move_in_every_call_are_never_recorded(gpu):
    again = Replay(entries=3)
    for address in itertools.islice(itertools.cycle([7, 8, 9]), 12):
        gpu.memory[address] = 1
        again(gpu.add, Place(address))
    assert (gpu.total, gpu.recordings) == (12, 0)


def test_there_are_a_few_recordings_at_most(gpu):
    again = Replay(entries=3)
    for address in range(20):
        gpu.memory[address] = 1
        for _ in range(3):
            again(gpu.add, Place(address))
    assert (gpu.total, gpu.recordings, again.recordings_left) == (60, replay._RECORDINGS, 0)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=["memory", "Ctrl-C"])
def test_a_failed_call_leaves_no_recording_of_other_places(gpu, error):
    again = Replay(entries=3)
    gpu.memory.update({7: 1, 8: 10})
    for _ in range(3):
        again(gpu.add, Place(7))
    gpu.fails = error
    with pytest.raises(type(error)):
        again(gpu.add, Place(8))
    gpu.fails = None
    again(gpu.add, Place(8))
    assert gpu.total == 13


def test_what_cannot_be_recorded_runs_as_usual(gpu):
    again = Replay(entries=3)
    gpu.memory[7] = 1

    def add(place):
        if gpu.recording is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        gpu.add(place)

    for _ in range(5):
        again(add, Place(7))
    assert (gpu.total, gpu.runs, gpu.recordings, again.recordings_left) == (5, 5, 1, 0)
    assert gpu.recording is None


def test_an_interrupted_recording_is_made_again(gpu):
    again = Replay(entries=3)
    gpu.memory[7] = 1

    def add(place):
        if gpu.recording is not None and gpu.recordings == 1:
            raise KeyboardInterrupt
        gpu.add(place)

    again(add, Place(7))
    with pytest.raises(KeyboardInterrupt):
        again(add, Place(7))
    assert gpu.recording is None
    for _ in range(3):
        again(add, Place(7))
    assert (gpu.total, gpu.recordings) == (5, 2)


def test_the_users_own_recording_gets_the_operators(gpu):
    again = Replay(entries=3)
    gpu.memory[7] = 1
    for _ in range(3):
        again(gpu.add, Place(7))
    gpu.recording = []
    again(gpu.add, Place(7))
    assert (gpu.recording, gpu.total) == ([7], 3)


def test_large_tensors_are_not_recorded(gpu):
    again = Replay(entries=replay.MOST_ENTRIES + 1)
    gpu.memory[7] = 1
    for _ in range(4):
        again(gpu.add, Place(7))
    assert (gpu.total, gpu.recordings) == (4, 0)


def test_recordings_are_made_on_the_tensors_device(gpu):
    again, devices, place = Replay(entries=3), [], Place(7)
    place.device = torch.device("cuda", 1)
    gpu.memory[7] = 1

    def add(place):
        devices.append(gpu.device)
        gpu.add(place)

    for _ in range(3):
        again(add, place)
    assert (devices, gpu.device, gpu.total) == ([1, 1, 1], 0, 3)


def test_on_a_cpu_every_call_runs_as_usual():
    total, again = torch.zeros(2), Replay(entries=2)
    one = torch.ones(2)
    for _ in range(5):
        again(total.add_, one)
    assert total.tolist() == [5, 5]
