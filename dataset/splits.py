"""Which files of a folder hold rows, and of which split."""

from __future__ import annotations

import re
from pathlib import Path

from dataset.files import READERS

VALIDATION = ("validation", "valid", "val", "dev", "eval")  # the usual names of this split
_SPLITS = ("train", *VALIDATION, "test")
_SHARD = re.compile(r"-\d{5}-of-\d{5}(-[0-9a-f]+)?$")  # older files of the hub end with a digest


def split_of(path: Path) -> str:
    """Returns the name of the split that a file of a folder belongs to."""
    return _SHARD.sub("", path.stem)


def holds_rows(path: Path) -> bool:
    """Whether a file of a folder is data. Other text files, such as a readme, are not."""
    if path.name == "dataset_infos.json":  # of older repositories of the hub
        return False
    return path.suffix in READERS and (path.suffix != ".txt" or split_of(path) in _SPLITS)
