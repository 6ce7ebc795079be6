"""Identifies a base model by a SHA-256 of all frozen weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch


def fingerprint(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Returns the SHA-256 (hex) of names, shapes, dtypes and bytes of `tensors`, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
