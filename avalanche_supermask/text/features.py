"""Token features of a frozen encoder, computed once for every text.

A text is encoded alone, without padding, so that its features depend on nothing but the text: not on the batch it
comes in, nor on whether they were computed now or read from memory or a file. An epoch over known texts costs no
encoder at all.
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
    """Features of token sequences under an encoder that never trains; copies and pickles share one memory.

    Args:
        encoder: a module called as Hugging Face's models are (``input_ids=``, ``attention_mask=``, answers with
            ``last_hidden_state``), copied and put into evaluation mode; or a model's name or folder.
        file: features saved by `save`, read at once; None or a path where nothing is: none.
        max_bytes: of features kept in memory (default 4 GiB); beyond, texts are encoded anew each time.

    Raises:
        ValueError: the file holds features of another encoder.
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
        """Number of texts whose features are known."""
        return len(self._known)

    def __call__(self, x: Tensor) -> Tensor:
        """Features of a batch, float32 ``(batch, longest, width)``, zero behind a text's last token.

        Args:
            x: integers ``(batch, 2, length)``, token ids and attention mask.

        Raises:
            ValueError: something else.
        """
        check_texts(x)
        texts = [row[0][row[1].bool()] for row in x.cpu()]
        out = torch.zeros(len(texts), max([1, *map(len, texts)]), self.width)
        for row, ids in zip(out, texts, strict=True):
            if len(ids):
                row[: len(ids)] = self._of(ids, x.device)
        return out.to(x.device)

    def knows(self, x: Tensor) -> bool:
        """Whether a text's features are known: integers ``(2, length)``, token ids and attention mask."""
        return _key(x[0][x[1].bool()]) in self._known

    def _of(self, ids: Tensor, device: torch.device) -> Tensor:
        """Features ``(tokens, width)`` of one text's token ids; encoded on this device if they are not known."""
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
        """Write all known features to a safetensors file, all of it or nothing."""
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
        """Digest of the encoder's parameters."""
        digest = hashlib.blake2b(digest_size=KEY_BYTES)
        for name, p in sorted(self.encoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(p.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    # ------------------------------------------------------------------ copies

    def __deepcopy__(self, memo: dict[int, Any]) -> TokenFeatures:
        return self  # it never changes what it answers

    def __reduce__(self) -> tuple[Any, ...]:
        """An encoder that came by name is loaded by name again; one of the caller's travels along."""
        return _again, (self.source or self.encoder, self.file, self.max_bytes)


def check_texts(x: Tensor) -> None:
    """Raise ValueError for what is no batch of texts."""
    if x.dim() != 3 or x.shape[1] != 2 or x.is_floating_point():
        raise ValueError(
            f"expected texts as integers (batch, 2, length), token ids and attention mask; got {x.dtype} "
            f"{tuple(x.shape)}: make them with text_stream or tokenise"
        )


def _again(encoder: nn.Module | str, file: Path | None, max_bytes: int) -> TokenFeatures:
    return TokenFeatures(encoder, file=file, max_bytes=max_bytes)


def _key(ids: Tensor) -> bytes:
    return hashlib.blake2b(ids.numpy().tobytes(), digest_size=KEY_BYTES).digest()
