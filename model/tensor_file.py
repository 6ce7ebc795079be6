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

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils._pytree import tree_leaves

from heterolora.common.errors import UserError
from heterolora.common.files import whole
from heterolora.common.outside import reading

DIGEST = "heterolora_sha256"  # key of the metadata of a safetensors file
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_EXPECTED = "give a complete file; a file that would run code is never loaded"


def digest_of(tensors: Mapping[str, Tensor]) -> Any:
    """Return a SHA-256 of names, shapes, dtypes and bytes of the tensors, sorted by name. It can be updated."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors with `metadata` and a digest of both."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": "pt", **metadata}
    with whole(path) as unfinished:
        unfinished.write_bytes(save(plain, {**metadata, DIGEST: _digest(plain, metadata)}))


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = digest_of(tensors)
    digest.update(json.dumps(metadata, sort_keys=True).encode())
    return digest.hexdigest()


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata. Raises UserError if the file is not complete, or differs from its digest."""
    with reading("the file of tensors", path, _EXPECTED):
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        digest = metadata.pop(DIGEST, None)
        if digest is not None and digest != _digest(tensors, metadata):
            raise UserError(f"the file of tensors '{path}' is damaged: it differs from its digest", _EXPECTED)
        return tensors, metadata


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise UserError if a weight is NaN or infinite: every number that is computed with it would be, too."""
    for name, tensor in tensors.items():
        if tensor.dtype in _DTYPES.values() and tensor.numel() and not tensor.is_meta:
            lowest, highest = tensor.detach().aminmax()  # NaN if there is one
            if not (lowest.isfinite() and highest.isfinite()):
                raise UserError(f"the weight {name} of {where} has values that are NaN or infinite", _EXPECTED)


class MappedTensors:
    """The tensors of the safetensors files of a folder, for changes in place: a tensor is mapped from its file.

    A file is the length of its header (8 bytes, little-endian), the header (JSON: name -> dtype, shape and place) and
    the bytes of the tensors.
    """

    def __init__(self, folder: Path) -> None:
        self._places: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        for path in folder.glob("*.safetensors"):
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
            header.pop("__metadata__", None)
            self._places |= {name: (path, 8 + size, about) for name, about in header.items()}

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name; what is written to it is written to its file."""
        path, start, about = self._places[name]
        first, end = about["data_offsets"]
        data = np.memmap(path, mode="r+", offset=start + first, shape=end - first)
        return torch.from_numpy(data).view(_DTYPES[about["dtype"]]).view(about["shape"])


def read_tensors(path: Path) -> Any:
    """Return the contents of a file onto the CPU: tensors and plain values.

    Raises UserError if the file is missing, damaged or of another kind, or would run code.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path} is not there", "give the path of a file")
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    with reading("the file of tensors", path, _EXPECTED):
        if zipfile.is_zipfile(path):
            _check_zip(path)
        contents = torch.load(path, map_location="cpu", weights_only=True)
        if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves(contents)):
            raise ValueError("it has tensors without values")
        return contents


def _check_zip(path: Path) -> None:
    """Raise ValueError if a member of a zip archive is compressed, as none of torch is, or differs from its CRC."""
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("it is compressed")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} differs from its checksum")
