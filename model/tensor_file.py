"""Files of tensors, torch's or safetensors, as they come from outside. Every byte of them is checked where it can be.

A torch file is a zip archive, which has a CRC-32 of each member; `torch.load` does not check it. A safetensors file has
no checksum, so the files of this program have a digest in their metadata.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from heterolora.errors import UserError
from heterolora.files import whole
from heterolora.outside import reading

DIGEST = "heterolora_sha256"  # key of the metadata of a safetensors file
_EXPECTED = "give a complete file; a file that would run code is never loaded"


def digest_of(tensors: Mapping[str, Tensor]) -> Any:
    """Returns a SHA-256 of names, shapes, dtypes and bytes of the tensors, sorted by name. It can be updated."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors with `metadata` and a digest of both."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": "pt", **metadata}
    with whole(path) as unfinished:
        unfinished.write_bytes(save(plain, {**metadata, DIGEST: _digest(plain, metadata)}))


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = digest_of(tensors)
    digest.update(json.dumps(metadata, sort_keys=True).encode())
    return digest.hexdigest()


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns tensors and metadata. Raises UserError if the file is not complete, or differs from its digest."""
    with reading("the file of tensors", path, _EXPECTED):
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        digest = metadata.pop(DIGEST, None)
        if digest is not None and digest != _digest(tensors, metadata):
            raise UserError(f"the file of tensors '{path}' is damaged: it differs from its digest", _EXPECTED)
        return tensors, metadata


def read_tensors(path: Path) -> Any:
    """Returns the contents of a file onto the CPU: tensors and plain values.

    Raises UserError if the file is missing, damaged or of another kind, or would run code.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path} is not there", "give the path of a file")
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    with reading("the file of tensors", path, _EXPECTED):
        if zipfile.is_zipfile(path):
            _check_zip(path)
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_zip(path: Path) -> None:
    """Raises ValueError if a member of a zip archive is compressed, as none of torch is, or differs from its CRC."""
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("it is compressed")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} differs from its checksum")
