"""Which files of a folder hold rows, and of which split. Importing this file is cheap."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")  # of the formats in `dataset.reading.files`
VALIDATION = ("validation", "valid", "val", "dev", "eval")  # the usual names of this split
_SPLITS = ("train", *VALIDATION, "test")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(-[0-9a-f]+)?$")  # older files of the hub end with a digest
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")


def split_of(path: Path) -> str:
    """Return the name of the split that a file of a folder belongs to."""
    name = _SHARD.sub("", path.stem)
    return name.lower() if name.lower() in _SPLITS else name


def are_shards(paths: Sequence[Path]) -> bool:
    """Whether all files of a split are parts of one data set."""
    found = [_SHARD.search(path.stem) for path in paths]
    return None not in found and len({match[2] for match in found if match}) == 1


def missing_shards(paths: Iterable[Path]) -> list[str]:
    """Return what the names of the missing files of a split contain, such as `-00001-of-00003`."""
    found = [match for path in paths if (match := _SHARD.search(path.stem))]
    every = {f"-{index:05}-of-{total}" for total in {match[2] for match in found} for index in range(int(total))}
    return sorted(every - {f"-{match[1]}-of-{match[2]}" for match in found})


def is_packed(path: Path) -> bool:
    """Whether a file of a folder is data of a split in a compressed file."""
    inner = path.with_suffix("")
    return path.suffix in _PACKED and inner.suffix in SUFFIXES and split_of(inner) in _SPLITS


def files_by_split(folder: Path) -> dict[str, list[Path]]:
    """Return the files of a folder that hold rows. Other text files, such as a readme, do not."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*")):
        is_data = path.suffix in SUFFIXES and (path.suffix != ".txt" or split_of(path) in _SPLITS)
        if is_data and path.name != "dataset_infos.json":  # of older repositories of the hub
            found.setdefault(split_of(path), []).append(path)
    return found
