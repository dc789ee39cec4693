"""Sparse fine-tuning: a task is a change of a few entries of a pretrained network, which no other task may change.

After Ansell et al., "Composable Sparse Fine-Tuning for Cross-Lingual Transfer", ACL 2022 (LT-SFT); Panda et al.,
"Lottery Ticket Adaptation", 2024; Bhardwaj et al., "Sparse High Rank Adapters", NeurIPS 2024 (SHiRA). The exclusive
ownership of the entries is that of Yadav & Bansal 2023 (see `exssnet`).

Idea. The network that was brought, the base, stays as it is outside a task's mask:

    W_t = W_base + M_t ⊙ (V - W_base)          M_t ∧ M_s = ∅  for s < t

M_t holds a fraction ``density`` of each layer, chosen among the entries that no finished task owns, and V at M_t is
trained. As no two tasks own the same entry, one buffer V serves all of them, and 1/density tasks fit. How the entries
are chosen, by ``choose``:

* ``"gradient"``: the largest |Σ dL/dW| over some of the task's training data, at the base;
* ``"magnitude"``: the largest |W_base|;
* ``"change"``: train all free entries for the first epochs, keep those that moved the most, start again (LT-SFT);
* ``"random"``: drawn with the model's seed and the task's key.

What a task reads outside its own entries is the base (``reads="base"``), or what all earlier tasks made of it as well
(``reads="earlier"``).

Deviations. The count is taken layer by layer, not over the whole network at once. After ``"change"`` the task's own
tensors (output layer, norms) go on from where the first epochs left them.
"""

from __future__ import annotations

import re
import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from avalanche_supermask import nested
from avalanche_supermask.functional import initial_scores, top_k_free
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.model.tensor_roles import output_layer
from avalanche_supermask.plugin import Phase, Schedule, SubnetworkPlugin, TaskKey
from avalanche_supermask.pretrained import left_out, said_of
from avalanche_supermask.registry import register
from avalanche_supermask.selection import LayerDensities, TopK, selection
from avalanche_supermask.shared_arguments import taken_by
from avalanche_supermask.strategy import AllArguments, SubnetworkStrategy

__all__ = ["Choose", "Reads", "SparseFineTuning", "SparseFineTuningPlugin"]

Choose = Literal["gradient", "magnitude", "change", "random"]
Reads = Literal["base", "earlier"]


class SparseFineTuningPlugin(SubnetworkPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Sparse fine-tuning as a plugin of any template whose model is a `MaskedModel` with ``outside="base"``.

    Args:
        density: fraction of each masked weight that a task changes (default 0.01).
        layer_densities: ``"uniform"`` or ``"erdos_renyi"``, at the same overall density.
        choose: which entries: ``"gradient"``, ``"magnitude"``, ``"change"`` or ``"random"`` (see the module).
        choose_samples: of ``"gradient"``: training samples, drawn with the model's seed (default 1,000).
        choose_epochs: of ``"change"``: first epochs of an experience, in which all free entries train; None: half.
        reads: what a task reads outside its own entries: the ``"base"``, or what ``"earlier"`` tasks made of it.
        lr: learning rate; None: the optimizer's.

    Raises:
        ValueError: density outside (0, 1], or an unknown option; when training starts, ``choose_epochs`` that leave no
            epoch, or a model that does not keep its base.
    """

    def __init__(
        self,
        *,
        density: float = 0.01,
        layer_densities: LayerDensities = "uniform",
        choose: Choose = "gradient",
        choose_samples: int = 1000,
        choose_epochs: int | None = None,
        reads: Reads = "base",
        lr: float | None = None,
        task_key: TaskKey = "auto",
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__(task_key=task_key, schedule=schedule)
        selection({"check": (1,)}, density=density, layer_densities=layer_densities)
        if choose not in ("gradient", "magnitude", "change", "random"):
            raise ValueError(f"choose must be 'gradient', 'magnitude', 'change' or 'random'; got {choose!r}")
        if reads not in ("base", "earlier"):
            raise ValueError(f"reads must be 'base' or 'earlier'; got {reads!r}")
        if choose_samples < 1:
            raise ValueError(f"choose_samples must be at least 1; got {choose_samples}")
        self.density, self.layer_densities = density, layer_densities
        self.choose: Choose = choose
        self.choose_samples, self.choose_epochs = choose_samples, choose_epochs
        self.reads: Reads = reads
        self.lr = lr
        self._chosen: dict[str, Tensor] = {}  # of the task being learned

    # ------------------------------------------------------------------ the lifecycle of a task

    def phases(self, epochs: int) -> list[Phase]:
        """The chosen entries learn; with ``choose="change"``, all free ones before them."""
        if self.choose != "change":
            return [Phase("entries", epochs, self.lr)]
        first = epochs // 2 if self.choose_epochs is None else self.choose_epochs
        if not 0 < first < epochs:
            raise ValueError(
                f"choose='change' trains all free entries first: expected choose_epochs between 1 and "
                f"{epochs - 1}, got {first}; raise train_epochs"
            )
        return [Phase("all", first, self.lr), Phase("entries", epochs - first, self.lr)]

    def prepare(self, model: MaskedModel) -> None:
        """Allocate the values of the entries of one task."""
        if model.outside != "base" or model.init != "keep":
            raise ValueError(
                "sparse fine-tuning changes a few entries of the network that was brought: expected a MaskedModel with "
                f"outside='base' and init='keep', got {model.outside!r} and {model.init!r}"
            )
        model.subnetworks.allocate_values(self.counts(model))

    def begin_task(self, strategy: Any, model: MaskedModel) -> None:
        """Choose the entries, unless training is to show them."""
        if self.choose != "change":
            self._chosen = self._among_free(model, self._scores(strategy, model))

    def enter_phase(self, phase: Phase, model: MaskedModel) -> None:
        """All free entries learn, or the chosen ones."""
        if phase.name == "all":
            self._learn_all(model)
            return
        if self.choose == "change":
            self._chosen = self._among_free(model, self._moved(model))
        owned = model.subnetworks.owned() if self.reads == "earlier" else {}
        model.learn_entries(
            self._chosen,
            mask={name: chosen | owned[name] if owned else chosen for name, chosen in self._chosen.items()},
        )

    # ------------------------------------------------------------------ how many

    def counts(self, model: MaskedModel) -> dict[str, int]:
        """Entries of each masked weight that a task changes."""
        select = selection(model.masked_shapes, density=self.density, layer_densities=self.layer_densities)
        assert isinstance(select, TopK)
        return dict(select.counts)

    def tasks_left(self, model: MaskedModel) -> int:
        """How many more tasks find as many free entries as they ask for, in every layer."""
        counts = self.counts(model)
        return min(layer.free // counts[name] for name, layer in model.capacity().items())

    # ------------------------------------------------------------------ which

    def _among_free(self, model: MaskedModel, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """The largest scores among the entries that no finished task owns; what is missing is said."""
        counts, owned = self.counts(model), model.subnetworks.owned()
        chosen = {name: top_k_free(score, owned[name], counts[name]) for name, score in scores.items()}
        found = {name: int(entries.sum()) for name, entries in chosen.items()}
        short = [name for name, count in counts.items() if found[name] < count]
        if not any(found.values()) and not model.has_own_tensors:
            key = model.active
            model.abandon()
            raise ValueError(
                f"task {key} cannot be learned: the {len(model.task_keys)} finished tasks own every entry; forget one, "
                "start with a lower density, or give tasks an output layer or norms of their own"
            )
        if short:
            warnings.warn(
                f"task {model.active} finds {sum(found.values())} free entries of the {sum(counts.values())} that its "
                f"density stands for, and learns those: {len(short)} layers are full, {short[0]!r} first "
                f"({found[short[0]]} of {counts[short[0]]}); forget(task) frees entries, a lower density needs fewer",
                stacklevel=2,
            )
        return chosen

    def _scores(self, strategy: Any, model: MaskedModel) -> dict[str, Tensor]:
        frozen = model.subnetworks.frozen
        if self.choose == "magnitude":
            return dict(model.subnetworks.base)
        if self.choose == "random":
            generator = torch.Generator().manual_seed(model.seed + 1_000_003 * (model.active or 0))
            drawn = {name: initial_scores(shape, generator=generator) for name, shape in model.masked_shapes.items()}
            return {name: scores.to(frozen[name].device) for name, scores in drawn.items()}
        return self._gradients(strategy, model)

    def _gradients(self, strategy: Any, model: MaskedModel) -> dict[str, Tensor]:
        """Σ dL/dW over a seeded sample of the training data, without dropout, before anything is learned."""
        self._learn_all(model)
        live = dict(model.net.named_parameters())
        was_training = model.training
        model.eval()
        try:
            for batch in self._sample(strategy, model.seed + (model.active or 0)):
                x, y = batch[0], batch[1].to(strategy.device)
                out = model.forward_task(model.active, nested.moved(x, strategy.device))
                (strategy._criterion(out, y) * len(y)).backward()
            found = {name: live[name].grad for name in model.masked_names}
        finally:
            model.train(was_training)
            model.zero_grad(set_to_none=True)
        gradients = {n: torch.zeros_like(live[n]) if g is None else g for n, g in found.items()}
        if not all(bool(g.isfinite().all()) for g in gradients.values()):
            key = model.active
            model.abandon()
            raise FloatingPointError(
                f"the gradient of task {key} at the base is NaN or infinite, so no entry can be chosen by it; the "
                f"{len(model.task_keys)} earlier tasks are intact; look at the inputs, or use choose='magnitude'"
            )
        return gradients

    def _sample(self, strategy: Any, seed: int) -> Any:
        """Seeded share of the current training data, in batches."""
        dataset = strategy.experience.dataset
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(dataset), generator=generator)[: self.choose_samples]
        return torch.utils.data.DataLoader(
            dataset.eval().subset(chosen.tolist()),
            batch_size=strategy.train_mb_size,
            collate_fn=getattr(dataset, "collate_fn", None),
            generator=generator,
        )

    def _learn_all(self, model: MaskedModel) -> None:
        """Let every free entry learn, around what the task reads."""
        free = {name: ~owned for name, owned in model.subnetworks.owned().items()}
        everything = {name: torch.ones_like(entries) for name, entries in free.items()}
        model.learn_weights(free, mask=free if self.reads == "base" else everything)

    def _moved(self, model: MaskedModel) -> dict[str, Tensor]:
        """How far training moved each entry from the base."""
        live = dict(model.net.named_parameters())
        return {name: live[name].detach() - base for name, base in model.subnetworks.base.items()}


@register("sparse_finetuning")
class SparseFineTuning(SubnetworkStrategy):
    """Sparse fine-tuning of a pretrained network: each task changes a few entries that are its alone.

    Uses task identities, in training and (with ``task_inference="given"``) at test. Forgets nothing: outputs of
    finished tasks stay bit-identical.

    Args:
        model: a pretrained network, for example from `pretrained.classifier`; deep-copied and wrapped.
        optimizer: None for Adam at ``lr``, whose state is kept for the chosen entries only, with a cosine schedule.
        density: fraction of each masked weight that a task changes (default 0.01).
        choose: ``"gradient"``, ``"magnitude"``, ``"change"`` or ``"random"``.
        reads: ``"base"`` or ``"earlier"``.
        head: ``"linear"``: each task trains an output layer of its own; ``"masked"``: a few of its entries, as in other
            layers.
        norm: norm layers are ``"frozen"`` as they were brought, running statistics included; or each task's ``"own"``.
        lr: learning rate (default ``1e-3 sqrt(0.1 / density)``: 3.2e-3 at 1 %); with an optimizer of yours, None
            keeps its own.
        task_key: ``"auto"``, ``"task_label"`` or ``"experience"``.
        schedule: ``"constant"`` or ``"cosine"``; by default cosine for our optimizer, constant for yours.
        arguments: of `MaskedModel` and of any Avalanche strategy. Without ``exclude``, embeddings, position tables and
            the like stay as they are (see `pretrained.left_out`), which is printed once.

    Raises:
        ValueError: quantised or integer weights, or an unknown option.

    Example:
        >>> net = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 2))
        >>> strategy = SparseFineTuning(net, density=0.05, train_epochs=2, evaluator=None)
        SparseFineTuning: a task changes 10 of 200 weights in 1 tensor; its own: 2.weight, 2.bias
        >>> strategy.tasks_left
        20
    """

    method: SparseFineTuningPlugin

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Optimizer | None = None,
        density: float = 0.01,
        layer_densities: LayerDensities = "uniform",
        choose: Choose = "gradient",
        choose_samples: int = 1000,
        choose_epochs: int | None = None,
        reads: Reads = "base",
        head: Literal["linear", "masked"] = "linear",
        norm: Literal["frozen", "own"] = "frozen",
        lr: float | None = None,
        task_key: TaskKey = "auto",
        schedule: Schedule | None = None,
        **arguments: Unpack[AllArguments],
    ) -> None:
        if head not in ("linear", "masked"):
            raise ValueError(f"head must be 'linear' or 'masked'; got {head!r}")
        if norm not in ("frozen", "own"):
            raise ValueError(f"norm must be 'frozen' or 'own'; got {norm!r}")
        given = {
            **taken_by(SparseFineTuningPlugin, locals()),
            "schedule": schedule or ("cosine" if optimizer is None else "constant"),
        }
        method = SparseFineTuningPlugin(**given)
        chosen_by_default = not isinstance(model, MaskedModel) and "exclude" not in arguments
        if chosen_by_default:
            arguments["exclude"] = left_out(model)
        if not isinstance(model, MaskedModel):
            own = [*arguments.get("own", ())]
            if head == "linear":
                own.append(re.escape(f"{output_layer(model)}.".lstrip(".")) + ".*")
            arguments["own"] = own
            arguments.setdefault("init", "keep")
            arguments.setdefault("outside", "base")
            arguments.setdefault("per_task", "norm" if norm == "own" else "none")
            arguments.setdefault("statistics", "task" if norm == "own" else "frozen")
        default_lr = lr or 1e-3 * (0.1 / density) ** 0.5
        super().__init__(model=model, method=method, optimizer=optimizer, default_lr=default_lr, **arguments)
        if chosen_by_default:
            print(said_of(self.model, changes=sum(method.counts(self.model).values())))

    @property
    def tasks_left(self) -> int:
        """How many more tasks find as many free entries as they ask for."""
        left: int = self.method.tasks_left(self.model)
        return left
