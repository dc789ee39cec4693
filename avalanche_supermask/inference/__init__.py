"""Who is the task? Finding it from the inputs alone, for every method.

Wortsman et al., "Supermasks in Superposition", NeurIPS 2020, sections 3.3 to 3.5; and two plain alternatives.

The superposition of K learned tasks is the network with the weights ``W ⊙ Σ a_i M_i``, ``a_i = 1/K``. An objective
of its outputs p is small where the network is sure:

    H(p) = -Σ_c softmax(p)_c log softmax(p)_c       entropy
    G(p) = logsumexp(p), the first ``classes`` logits held constant: what training pushed down is low on known data

`OneShot` takes one gradient: ``t = argmin_i dL/da_i``. `Binary` halves the candidates by it, log2 K times. `Entropy`
and `MaxLogit` try each task; `ExpectedEntropy` (ours) does not take a task's word for it where the task is less sure
than it was of its own training data. `EntropyDescent` names none, but fits ImpressLearn's mixture to the batch. The
superposition and its gradient, ``dL/da_i = <dL/dW_sup ⊙ W, M_i>``, come from packed bits, a few tasks at a time; no
task has a float copy of a layer.

What a task has for itself (running statistics, own parameters) is superposed with the same coefficients. Heads under
different names (Avalanche's multi-head modules) cannot be: only the methods that try each task serve such networks. The
paper uses inference on MNIST-like streams; on harder ones it is weak, as the networks are badly calibrated.
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
}


def by_name(inference: str | Inference) -> Inference | None:
    """The method of a name, or the object that was given; None for ``"given"``.

    Raises:
        ValueError: an unknown name.
    """
    if not isinstance(inference, str):
        return inference
    if inference == "given":
        return None
    if inference not in _NAMES:
        names: Sequence[str] = ("given", *_NAMES)
        raise ValueError(f"task_inference must be one of {', '.join(names)} or an object; got {inference!r}")
    return _NAMES[inference]()
