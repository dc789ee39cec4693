"""Task inference: finding the task of a sample from its inputs alone, for every method.

The methods are those of Wortsman et al., "Supermasks in Superposition", NeurIPS 2020, sections 3.3 to 3.5, and a few
others.

The superposition of K learned tasks is the network with the weights ``W ⊙ Σ a_i M_i``, ``a_i = 1/K``. An objective
of its outputs p is small if the network is confident:

    H(p) = -Σ_c softmax(p)_c log softmax(p)_c       entropy
    G(p) = logsumexp(p), with the first ``classes`` logits held constant

G depends on the superfluous logits, which training made small for known data.

`OneShot` computes one gradient: ``t = argmin_i dL/da_i``. `Binary` halves the set of candidates by this gradient,
log2 K times. `Entropy` and `MaxLogit` try each task. `ExpectedEntropy` (ours) also gives a penalty to a task that is
less confident than it was on its own training data. `Gaussian` compares features with those of each task, and
`Combined` adds the costs of several methods. `EntropyDescent` names no task, but fits ImpressLearn's mixture to the
batch. The superposition and its gradient, ``dL/da_i = <dL/dW_sup ⊙ W, M_i>``, are computed from packed bits, a few
tasks at a time; no float copy of a layer is made per task.

The private tensors of a task (running statistics, own parameters) are superposed with the same coefficients. Heads
under different names (Avalanche's multi-head modules) cannot be superposed, so `OneShot`, `Binary` and `EntropyDescent`
do not support such networks. The paper uses inference on MNIST-like streams; on harder streams it is weak, because the
networks are badly calibrated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from avalanche_supermask.inference.base import Answer, Candidates, Inference, Objective, Per, entropy
from avalanche_supermask.inference.by_gradient import Binary, OneShot
from avalanche_supermask.inference.by_trial import Entropy, ExpectedEntropy, MaxLogit
from avalanche_supermask.inference.combined import Combined
from avalanche_supermask.inference.entropy_descent import EntropyDescent
from avalanche_supermask.inference.gaussian import Gaussian

__all__ = [
    "Answer",
    "Binary",
    "Candidates",
    "Combined",
    "Entropy",
    "EntropyDescent",
    "ExpectedEntropy",
    "Gaussian",
    "Inference",
    "MaxLogit",
    "Objective",
    "OneShot",
    "Per",
    "by_name",
    "entropy",
]

_NAMES: dict[str, Callable[[], Inference]] = {
    "oneshot": OneShot,
    "binary": Binary,
    "entropy": Entropy,
    "expected_entropy": ExpectedEntropy,
    "max_logit": MaxLogit,
    "entropy_descent": EntropyDescent,
    "gaussian": Gaussian,
    "combined": Combined,
}


def by_name(inference: str | Inference) -> Inference | None:
    """The inference method with this name, or the object that was given; None for ``"given"``.

    Raises:
        ValueError: the name is unknown.
        TypeError: it is neither a name nor an object that can be called.
    """
    if isinstance(inference, type) or not (isinstance(inference, str) or callable(inference)):
        is_class = isinstance(inference, type)
        got = f"the class {inference.__name__}" if is_class else f"{inference!r}"
        remedy = f"{inference.__name__}()" if is_class else "'given' to use the task labels"
        raise TypeError(f"task_inference must be a name or an object of an inference class; got {got}: pass {remedy}")
    if not isinstance(inference, str):
        return inference
    if inference == "given":
        return None
    if inference not in _NAMES:
        names: Sequence[str] = ("given", *_NAMES)
        raise ValueError(f"task_inference must be one of {', '.join(names)} or an object; got {inference!r}")
    return _NAMES[inference]()
