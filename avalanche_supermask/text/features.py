"""Token features of a frozen encoder, computed once for every text.

Each text is encoded alone and without padding, so that its features depend only on the text. They do not depend on the
other texts of the batch, and they are the same whether they are computed, or read from memory or a file. In an epoch
over known texts the encoder does not run.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from avalanche_supermask.saving.atomic_write import written_whole
from avalanche_supermask.text.hub import pretrained

__all__ = ["TokenFeatures", "check_texts"]

KEY_BYTES = 16


class TokenFeatures:
    """Features of token sequences under an encoder that never trains.

    A deep copy is the same object. A pickle does not contain the features; when it is loaded, they come from ``file``,
    or they are computed again.

    Args:
        encoder: a module that is called like Hugging Face's models (with ``input_ids`` and ``attention_mask``) and
            returns ``last_hidden_state``; it is copied and put into evaluation mode. Or the name or folder of such a
            model.
        file: file with features that `save` wrote; it is read at once. With None (default), or if the file does not
            exist, there are no features at first.
        max_bytes: largest size of the features in memory, in bytes (default 4 GiB); the features of further texts are
            computed at each use.

    Raises:
        ValueError: the file contains features of another encoder.
    """

    def __init__(
        self, encoder: nn.Module | str | Path, *, file: Path | None = None, max_bytes: int = 4 * 2**30
    ) -> None:
        self.source = None if isinstance(encoder, nn.Module) else str(encoder)
        self.file, self.max_bytes = file, max_bytes
        module = copy.deepcopy(encoder) if isinstance(encoder, nn.Module) else pretrained(str(encoder))
        self.encoder = module.eval().requires_grad_(False)
        self._known: dict[bytes, Tensor] = {}
        self._held, self._full = 0, False
        self.width = self._encode(torch.zeros(1, dtype=torch.long), next(self.encoder.parameters()).device).shape[1]
        if file is not None and file.exists():
            self._read(file)

    def __len__(self) -> int:
        """Return the number of texts whose features are in memory."""
        return len(self._known)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the features of a batch, float32 ``(batch, longest, width)``; they are zero after a text's last token.

        Args:
            x: integers ``(batch, 2, length)``: token ids and attention mask.

        Raises:
            ValueError: ``x`` is not such a tensor.
        """
        check_texts(x)
        texts = [row[0][row[1].bool()] for row in x.cpu()]
        out = torch.zeros(len(texts), max([1, *map(len, texts)]), self.width)
        for row, ids in zip(out, texts, strict=True):
            if len(ids):
                row[: len(ids)] = self._of(ids, x.device)
        return out.to(x.device)

    def knows(self, x: Tensor) -> bool:
        """Whether the features of a text are in memory.

        Args:
            x: integers ``(2, length)``: token ids and attention mask.
        """
        return _key(x[0][x[1].bool()]) in self._known

    def _of(self, ids: Tensor, device: torch.device) -> Tensor:
        """Return the features ``(tokens, width)`` of one text's token ids; new ones are computed on ``device``."""
        key = _key(ids)
        found = self._known.get(key)
        if found is None:
            found = self._encode(ids, device)
            size = found.numel() * found.element_size()
            if self._held + size <= self.max_bytes:
                self._known[key] = found
                self._held += size
            elif not self._full:
                self._full = True
                warnings.warn(
                    f"features of {len(self)} texts fill max_bytes={self.max_bytes}; the others are encoded anew at "
                    "each use, which is slow: raise max_bytes",
                    stacklevel=2,
                )
        return found

    @torch.no_grad()
    def _encode(self, ids: Tensor, device: torch.device) -> Tensor:
        self.encoder.to(device)
        row = ids.long()[None].to(device)
        with torch.autocast(device.type, enabled=False):
            answer = self.encoder(input_ids=row, attention_mask=torch.ones_like(row))
        features: Tensor = answer.last_hidden_state[0].float().cpu().contiguous()
        return features

    # ------------------------------------------------------------------ files

    def save(self, path: Path) -> None:
        """Write all features in memory to a safetensors file; the file is written completely or not at all."""
        tensors = {
            "keys": torch.tensor([list(key) for key in self._known], dtype=torch.uint8).reshape(-1, KEY_BYTES),
            "lengths": torch.tensor([len(found) for found in self._known.values()], dtype=torch.long),
            "features": torch.cat([torch.zeros(0, self.width), *self._known.values()]),
        }
        with written_whole(path) as temporary:
            save_file(tensors, temporary, metadata={"encoder": self.fingerprint()})

    def _read(self, path: Path) -> None:
        with safe_open(str(path), framework="pt") as file:
            if (file.metadata() or {}).get("encoder") != self.fingerprint():
                raise ValueError(f"{path} holds features of another encoder; delete it, or name another file")
            features, lengths = file.get_tensor("features"), file.get_tensor("lengths").tolist()
            keys = [bytes(key) for key in file.get_tensor("keys").tolist()]
        self._known.update(zip(keys, features.split(lengths), strict=True))
        self._held += features.numel() * features.element_size()

    def fingerprint(self) -> str:
        """Return a digest of the encoder's parameters and buffers."""
        digest = hashlib.blake2b(digest_size=KEY_BYTES)
        for name, p in sorted(self.encoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(p.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    # ------------------------------------------------------------------ copies

    def __deepcopy__(self, memo: dict[int, Any]) -> TokenFeatures:
        return self  # sharing is safe, because the same text always has the same features

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle only the name of an encoder that was given by name, so that it is loaded again; else the encoder."""
        return _again, (self.source or self.encoder, self.file, self.max_bytes)


def check_texts(x: Tensor) -> None:
    """Check that ``x`` is a batch of texts.

    Raises:
        ValueError: it is not.
    """
    if x.dim() != 3 or x.shape[1] != 2 or x.is_floating_point():
        raise ValueError(
            f"expected texts as integers (batch, 2, length), token ids and attention mask; got {x.dtype} "
            f"{tuple(x.shape)}: make them with text_stream or tokenise"
        )


def _again(encoder: nn.Module | str, file: Path | None, max_bytes: int) -> TokenFeatures:
    return TokenFeatures(encoder, file=file, max_bytes=max_bytes)


def _key(ids: Tensor) -> bytes:
    return hashlib.blake2b(ids.numpy().tobytes(), digest_size=KEY_BYTES).digest()
